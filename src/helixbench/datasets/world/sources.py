"""Real textures and photographs whose licences let a model trained on them be given away.

They come with Debian packages (`PACKAGES`: names, versions, digests). A package's copyright file
says who made which file under which licence; only the files under `LICENCES` are used, and
`attribution` lists them. Never used in tests.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import re
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from helixbench.errors import UserError
from helixbench.provenance import claim


@dataclass(frozen=True)
class Package:
    """A Debian package: name, version, SHA-256 of the .deb, and which pictures in it to try.

    Patterns match an installed path, or a path in an archive with the archive's name as a folder.
    """

    name: str
    version: str
    sha256: str
    patterns: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """A usable picture: the file (an archive, if `member` is set), its licence and its authors."""

    file: Path
    member: str | None
    package: str
    licence: str
    authors: str

    def open(self) -> np.ndarray | None:
        """(H, W, 3) uint8, or None if it cannot be read or is partly transparent."""
        try:
            if self.member is None:
                picture = Image.open(self.file, formats=_FORMATS)
            else:
                with zipfile.ZipFile(self.file) as archive:
                    picture = Image.open(io.BytesIO(archive.read(self.member)), formats=_FORMATS)
            if max(picture.size) > 1600:  # sharp at the pixel, and quick
                picture.draft("RGB", (1600, 1600))
                picture.thumbnail((1600, 1600), Image.Resampling.LANCZOS)
            if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
                alpha = np.asarray(picture.convert("RGBA"))[..., 3]
                if (alpha < 250).mean() > 0.01:
                    return None
            return np.asarray(picture.convert("RGB"))
        except (OSError, ValueError, SyntaxError):
            return None


PACKAGES = (
    Package(
        "redeclipse-data",
        "1.6.0-1",
        "ada26453d3100bd61154ce20a699352f0b48bb29f8505f477ebdcb612f71ab42",
        ("*/philipk/*", "*/trak/*", "*/nobiax/*"),
    ),
    Package(
        "supertuxkart-data",
        "1.4+dfsg-2",
        "568d69cda50dc8ad1facb89514bd14953dfca736fdb83c49ae330b0aa7dd2364",
        ("*/data/textures/*", "*/data/tracks/*", "*/data/library/*"),
    ),
    Package(
        "ufoai-textures",
        "2.5-2",
        "51c9c6a778249a3fa432c81c8c30ac5675ae5a1e675a33b0ce04545753d3218c",
        ("*.pk3/textures/*",),
    ),
    Package(
        "trigger-rally-data",
        "0.6.6.1-3",
        "44ac51e6717e1aac7e93b76661cce19cf8bdba154dd1df2e93b7f593b2c37cb9",
        ("*.zip/textures/*",),
    ),
    Package(
        "lomiri-wallpapers-16.04",
        "20.04.0-2",
        "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
        ("*/backgrounds/*",),
    ),
    Package(
        "mypaint-data-extras",
        "2.0.1-9",
        "9d5971baa5eb411309940ea2cfe11aa7f6ec2c39e7f9ecd2bbef81fc6404b1d1",
        ("*/backgrounds/*",),
    ),
)

LICENCES = ("CC0", "CC0-1.0", "public-domain", "CC-BY-3.0", "CC-BY-4.0", "Expat")
"""Short names in Debian's copyright files: dedications to the public, or attribution only. Left out
on purpose: GPL and Free Art (works derived from them stay under them), CC-BY-SA (the same, if
weights are an adaptation: open), GFDL."""

_FORMATS = ("PNG", "JPEG", "TGA")

_NOBODY = re.compile(r"\?{2}|^\(")
"""Authors that are nobody: whether such a file is free is a guess."""

_NOT_COLOUR = re.compile(
    r"([_-](n|nm|nrm|normal\w*|norm|s|sm|spec\w*|gloss\w*|i|h|height|bump|add|z|mask"
    r"|alpha|gm|glow|rm|ao|colormask|local)|/normals?)$",
    re.IGNORECASE,
)
_NOT_A_SURFACE = re.compile(
    r"icon|flag|particle|sprite|sky|cloud|screenshot|preview|minimap|font|logo|banner|billboard"
    r"|leaf|leaves|/veg/|bush|branch|flower|tree|fern|tex_pics|shadow|decal|life_helmet|sign"
    r"|computer|/skies/|screen|map\d",
    re.IGNORECASE,
)


def fetch(folder: Path) -> None:
    """Download and unpack the packages into a folder that may exist, one folder each.

    Raises:
        UserError: there is no apt here, or a package is not the one that was looked at.
    """
    for package in PACKAGES:
        target = folder / package.name
        if target.is_dir():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(
                ["apt-get", "download", f"{package.name}={package.version}"],
                cwd=folder,
                check=True,
                capture_output=True,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(
                f"{package.name}: cannot download version {package.version} with apt-get; "
                "run `apt-get update`, or use Debian 12"
            ) from error
        (deb,) = folder.glob(f"{package.name}_*.deb")
        with deb.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != package.sha256:
            raise UserError(
                f"{deb}: SHA-256 is {digest}, not {package.sha256}; delete it and try again"
            )
        subprocess.run(["dpkg-deb", "-x", deb.name, f"{package.name}.part"], cwd=folder, check=True)
        (folder / f"{package.name}.part").rename(target)
        deb.unlink()


def stanzas(text: str) -> list[tuple[list[str], str, str]]:
    """File patterns, licence's short name and authors of each part of a Debian copyright file."""
    found = []
    for part in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^(Files|License|Copyright):(.*(?:\n[ \t].*)*)", part, re.M))
        if "Files" in fields and "License" in fields:
            licence = fields["License"].strip().split("\n")[0].strip()
            authors = " ".join(fields.get("Copyright", "").split())
            found.append((fields["Files"].split(), licence, authors))
    return found


def pictures(folder: Path) -> list[Picture]:
    """The usable pictures of the unpacked packages, in a fixed order.

    Raises:
        UserError: a package is missing.
    """
    found = []
    for package in PACKAGES:
        root = folder / package.name
        notes = root / "usr/share/doc" / package.name / "copyright"
        if not notes.is_file():
            raise UserError(f"{notes}: not there; unpack {package.name} with `fetch` first")
        rules = _Rules(stanzas(notes.read_text(encoding="utf-8")))
        for file in sorted(root.rglob("*")):
            names: list[str | None] = [None]
            if file.suffix in (".pk3", ".zip"):
                with zipfile.ZipFile(file) as archive:
                    names = sorted(archive.namelist())
            for member in names:
                path = str(file.relative_to(root)) + (f"/{member}" if member else "")
                if not _wanted(path, package.patterns):
                    continue
                aliases = [path, path.replace(f"/{file.name}/", "/")] if member else [path]
                rule = rules.of(aliases)
                if rule and rule[0] in LICENCES and not _NOBODY.search(rule[1]):
                    found.append(Picture(file, member, package.name, *rule))
    return found


def _wanted(path: str, patterns: tuple[str, ...]) -> bool:
    stem, _, suffix = path.rpartition(".")
    return (
        suffix.lower() in ("png", "jpg", "jpeg", "tga")
        and any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
        and not _NOT_COLOUR.search(stem)
        and not _NOT_A_SURFACE.search(path.split("/share/", 1)[-1].split("/", 1)[-1])
    )


class _Rules:
    """Which stanza an installed file falls under: the last that matches, as Debian reads them."""

    def __init__(self, parts: list[tuple[list[str], str, str]]):
        self.exact: dict[str, tuple[int, str, str]] = {}
        self.wild: list[tuple[int, str, str, str]] = []
        for n, (patterns, licence, authors) in enumerate(parts):
            for pattern in patterns:
                # The source's top folder has another name where the files are installed.
                for ending in {pattern, pattern.partition("/")[2]} - {"", "*"}:
                    if "*" in ending or "?" in ending:
                        self.wild.append((n, f"*/{ending}", licence, authors))
                    elif "/" in ending or "/" not in pattern or pattern.count("/") == 1:
                        self.exact[ending] = (n, licence, authors)

    def of(self, aliases: list[str]) -> tuple[str, str] | None:
        """Licence and authors of a file, None where only the package's own licence covers it."""
        best = None
        for path in aliases:
            parts = path.split("/")
            for k in range(len(parts)):
                hit = self.exact.get("/".join(parts[k:]))
                if hit and (best is None or hit[0] > best[0]):
                    best = hit
            for n, pattern, licence, authors in self.wild:
                if (best is None or n > best[0]) and fnmatch.fnmatchcase(path, pattern):
                    best = (n, licence, authors)
        return best[1:] if best else None


def attribution(found: list[Picture]) -> str:
    """A table of package, licence, authors and files, for a model card, as tab-separated lines."""
    rows = []
    for p in found:
        file = str(p.file).partition(f"/{p.package}/")[2]
        rows.append((p.package, p.licence, p.authors, f"{file}/{p.member}" if p.member else file))
    return "\n".join("\t".join(row) for row in [("package", "licence", "authors", "file"), *rows])


def texture_like(picture: np.ndarray) -> bool:
    """Whether a picture, (H, W, 3) uint8, may be a surface: not flat, no normal map, few colours
    that do not occur in photographs.
    """
    mean = picture.reshape(-1, 3).mean(axis=0)
    normal_map = mean[2] > 180 and abs(mean[0] - 128) < 30 and abs(mean[1] - 128) < 30
    magenta = min(mean[0], mean[2]) > 2.5 * mean[1] + 30
    return not (normal_map or magenta) and picture.std(axis=(0, 1)).max() >= 4 and 12 < mean.max()


def crops(found: list[Picture], size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Random crops (size, size, 3) uint8, about one for each half of a picture's area, at random
    scales from the picture's own pixels down to its whole; flat crops are left out.
    """
    for picture in found:
        whole = picture.open()
        if whole is None or min(whole.shape[:2]) < size or not texture_like(whole):
            continue
        height, width = whole.shape[:2]
        seen = Image.fromarray(whole)
        for _ in range(int(np.clip(2 * height * width / size**2, 4, 90))):
            side = int(size * (min(height, width) / size) ** rng.random())
            y, x = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
            crop = seen.resize((size, size), Image.Resampling.BOX, (x, y, x + side, y + side))
            crop = np.asarray(crop)
            if crop.std(axis=(0, 1)).max() >= 3 and 8 < crop.mean() < 250:
                yield crop


def collect(folder: Path, size: int = 128, per_picture: int = 8) -> int:
    """Download the packages, and write crops of their usable pictures as JPEG files into a folder,
    in random order, with attribution.tsv; how many there are.

    A few crops of each picture: variety before quantity.

    Raises:
        UserError: as `fetch`, and for a folder with files of somebody else.
    """
    claim(folder)
    packages = folder / "packages"
    fetch(packages)
    found, rng, chosen = pictures(packages), np.random.default_rng(0), []
    for picture in found:
        some = list(crops([picture], size, rng))
        rng.shuffle(some)
        chosen += some[:per_picture]
    for i, position in enumerate(rng.permutation(len(chosen))):
        Image.fromarray(chosen[position]).save(folder / f"{i:05d}.jpg", quality=88, subsampling=0)
    (folder / "attribution.tsv").write_text(attribution(found) + "\n", encoding="utf-8")
    return len(chosen)
