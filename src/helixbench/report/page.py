"""One self-contained HTML page about a run: tables, figures, galleries of pairs, gate counts,
provenance. No network.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from helixbench.config import Slice
from helixbench.errors import UserError
from helixbench.pictures.files import FORMATS
from helixbench.pictures.outline import outlined
from helixbench.provenance import write_text
from helixbench.records import GOOD, Pair, Sample, inside
from helixbench.report.grid import evenly
from helixbench.report.run_folder import Job, RunFolder

TILE = 128
"""Side of a picture of the gallery [pixel]."""
_WORDS = {
    "overview": "Results at a glance",
    "training": "Training",
    "cost": "Cost",
    "detector": "Detectors on held-out real pictures",
    "masks": "Masks, real against generated",
    "figure": "Generated pairs",
}


def run(
    config: Slice, *, results: Path, tables: Iterable[Path], figures: Iterable[Path], out: Path
) -> None:
    """Write the page.

    tables: .html fragments; figures: PNG files, all embedded. The gallery shows `report.gallery`
    pairs at most, spread evenly over methods, categories and defect types, with the outlines of
    their masks. Raises UserError for missing or damaged files.
    """
    folder = RunFolder(results, config)
    jobs = list(folder.jobs())
    pictures = gallery(folder, config["report"].gallery)
    fragments = []
    for file in tables:
        try:
            fragments.append(Path(file).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}; render the tables again") from None
    name = Path(results).name
    sections = [
        ("tables", "Tables", "\n".join(fragments)),
        ("figures", "Figures", "\n".join(_figure(Path(file)) for file in figures)),
        (
            "pairs",
            "Pairs",
            _filled("gallery.html", DATA=script_data(pictures)),
        ),
        ("gate", "Quality gate", gate_counts(folder)),
        ("provenance", "Where the numbers come from", provenance(jobs)),
    ]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in sections)
    body = "\n".join(
        f'<section id="{key}"><h2>{title}</h2>\n{text}\n</section>' for key, title, text in sections
    )
    about = ", ".join(
        f"{dataset} ({len(categories)})" for dataset, categories in folder.datasets.items()
    )
    text = _filled(
        "page.html",
        NAME=html.escape(name),
        ABOUT=html.escape(about),
        LINKS=links,
        STYLE=_part("page.css"),
        BODY=body,
    )
    write_text(out, text)


def script_data(value: Any) -> str:
    """JSON that may stand in a script element: no name in it can end the element or begin a
    comment.
    """
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _filled(name: str, **values: str) -> str:
    """A part of the page, its places filled at once: what fills one is not looked at again."""
    return re.sub(r"__([A-Z]+)__", lambda place: values[place[1]], _part(name))


def _figure(file: Path) -> str:
    kind, _, rest = file.stem.partition("_")
    number, _, dataset = rest.partition("_")
    if kind != "figure":
        dataset, number = rest, ""
    title = (
        _WORDS.get(kind, file.stem)
        + (f" (Figure {number})" if number else "")
        + (f", {dataset}" if dataset else "")
    )
    try:
        data = base64.b64encode(file.read_bytes()).decode()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; draw the figures again") from None
    name = html.escape(title)
    return (
        f'<figure><img loading="lazy" alt="{name}" '
        f'src="data:image/png;base64,{data}"><figcaption>{name}</figcaption></figure>'
    )


# ------------------------------------------------------------------------------------------------
# gallery


def gallery(folder: RunFolder, limit: int) -> list[dict]:
    """Rows of the gallery: method, data set, category, defect, gate, name, and the picture as a
    data address.
    """
    groups: list[tuple[dict, Path, list[Sample] | list[Pair]]] = []
    for d, c in folder.places():
        root, samples = folder.prepared(d, c)
        made = {label: folder.pairs(key, d, c) for key, label in folder.labels.items()}
        real = [s for s in samples if s.defect_trains and s.defect != GOOD]
        for defect in sorted({s.defect for s in real}):
            about = {"d": d, "c": c, "t": defect}
            groups.append(({"m": "real", **about}, root, [s for s in real if s.defect == defect]))
            for label, (home, pairs) in made.items():
                own = [pair for pair in pairs if pair.defect == defect]
                groups.append(({"m": label, **about}, home, own))
    share = max(1, limit // max(1, len(groups)))
    return [
        {**about, **_named(row), "s": tile(inside(home, row.image), inside(home, row.mask))}
        for about, home, rows in groups
        for row in evenly(rows, share)
    ]


def _named(row: Sample | Pair) -> dict[str, str]:
    """Gate and name of a tile."""
    if isinstance(row, Sample):
        return {"g": "ok", "n": row.id}
    return {"g": row.gate, "n": f"{row.defect}/{Path(row.image).name} seed {row.seed}"}


def tile(image: Path, mask: Path) -> str:
    """A pair as one WebP data address: the picture with the outline of its mask beside the plain
    picture.
    """
    try:
        with (
            Image.open(image, formats=FORMATS) as opened,
            Image.open(mask, formats=FORMATS) as mask_opened,
        ):
            how = Image.Resampling.BICUBIC if opened.width < TILE else Image.Resampling.BOX
            picture = np.asarray(opened.convert("RGB").resize((TILE, TILE), how))
            inside_mask = (
                np.asarray(mask_opened.convert("L").resize((TILE, TILE), Image.Resampling.BILINEAR))
                > 127
            )
    except (OSError, ValueError) as error:
        raise UserError(
            f"{image}: cannot be read with its mask ({error}); run its stage again"
        ) from None
    marked = outlined(picture, inside_mask)
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate([picture, marked], axis=1)).save(
        buffer, format="WEBP", quality=80
    )
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


# ------------------------------------------------------------------------------------------------
# gate and provenance


def _table(head: list[str], rows: Iterable[list]) -> str:
    names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    cells = ("".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in cells)
    return (
        f'<div class="wide"><table '
        f'class="plain"><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def gate_counts(folder: RunFolder) -> str:
    """How many pairs passed the mask gate, were drawn again, or failed, by method and data set."""
    rows = []
    for key, label in folder.labels.items():
        for dataset in folder.datasets:
            pairs = [pair for d, c in folder.places(dataset) for pair in folder.pairs(key, d, c)[1]]
            failed = {
                reason: sum(p.gate == reason for p in pairs)
                for reason in ("empty", "small", "large", "border")
            }
            redrawn = sum(p.redraws > 0 for p in pairs)
            rows.append(
                [
                    label,
                    dataset,
                    len(pairs),
                    sum(p.gate == "ok" for p in pairs),
                    redrawn,
                    *failed.values(),
                ]
            )
    return _table(
        [
            "method",
            "data set",
            "pairs",
            "passed",
            "drawn again",
            "empty",
            "small",
            "large",
            "border",
        ],
        rows,
    )


def provenance(jobs: list[Job]) -> str:
    """Versions and splits, then one row a job: what it ran from, on what, and what it cost."""
    versions = sorted(
        {
            f"{name} {version}"
            for job in jobs
            for name, version in job.facts.get("versions", {}).items()
        }
    )
    splits = sorted(
        {
            (job.dataset, job.category, split["rule"], split["sha256"][:16])
            for job in jobs
            if (split := job.facts.get("split")) and "sha256" in split
        }
    )
    rows = []
    for job in jobs:
        spent, seed = job.facts["cost"], "" if job.seed is None else job.seed
        made = [job.facts.get(key) or "" for key in ("device", "commit", "config_digest")]
        rows.append(
            [
                job.stage,
                job.method,
                job.dataset,
                job.category,
                seed,
                *made,
                f"{spent['wall_s']:.0f}",
                f"{spent['peak_rss_mib']:.0f}",
            ]
        )
    head = [
        "stage",
        "method",
        "data set",
        "category",
        "seed",
        "device",
        "commit",
        "config",
        "seconds",
        "MiB",
    ]
    text = f"<p>{html.escape(', '.join(versions))}</p>"
    text += "<h3>Splits</h3>" + _table(
        ["data set", "category", "split", "sha256"], map(list, splits)
    )
    return (
        text
        + f"<h3>Jobs</h3><details><summary>{len(rows)} jobs</summary>{_table(head, rows)}</details>"
    )


def _part(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
