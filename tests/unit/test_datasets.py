import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helixbench.datasets import fingerprint
from helixbench.datasets.layout import Layout
from helixbench.errors import UserError
from helixbench.records import GOOD

TREE = (
    "train/good/000.png",
    "train/good/001.JPG",
    "test/good/000.png",
    "test/dent/000.png",
    "test/dent/001.PNG",
    "test/scratch/007.jpeg",
    "ground_truth/dent/000_mask.png",
    "ground_truth/dent/001.png",
    "ground_truth/scratch/007_mask.bmp",
)
OTHER = (
    "license.txt",
    "readme.txt",
    "train/good/.000.png",
    "test/.DS_Store",
    "ground_truth/dent/Thumbs.db",
    "test/dent/.hidden.png",
)


def old(path: Path, content: bytes) -> None:
    """Write a file whose modification time has settled."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (1_000_000_000, 1_000_000_000))


@pytest.fixture
def root(tmp_path):
    for name in TREE + OTHER:
        old(tmp_path / "raw" / "bolt" / name, name.encode())
    return tmp_path / "raw"


@pytest.mark.parametrize("layout", ["mvtec_ad", "procedural"])
def test_reads_every_picture_with_its_mask(root, layout):
    samples = Layout.named(layout).read(root, "MVTec-AD", "bolt")
    found = [(s.subset, s.defect, s.image.name, s.mask and s.mask.name) for s in samples]
    assert found == [
        ("test", "dent", "000.png", "000_mask.png"),
        ("test", "dent", "001.PNG", "001.png"),
        ("test", GOOD, "000.png", None),
        ("test", "scratch", "007.jpeg", "007_mask.bmp"),
        ("train", GOOD, "000.png", None),
        ("train", GOOD, "001.JPG", None),
    ]
    assert {(s.dataset, s.category) for s in samples} == {("MVTec-AD", "bolt")}
    assert all(s.image.is_absolute() for s in samples)


def change(root: Path, remove: tuple[str, ...] = (), add: tuple[str, ...] = ()) -> None:
    for name in remove:
        (root / "bolt" / name).unlink()
    for name in add:
        old(root / "bolt" / name, b"x")


@pytest.mark.parametrize(
    ("remove", "add", "named", "advice"),
    [
        (("ground_truth/dent/000_mask.png",), (), "ground_truth/dent/000_mask.png", "add the mask"),
        (
            (),
            ("ground_truth/dent/009_mask.png",),
            "ground_truth/dent/009_mask.png",
            "remove the mask",
        ),
        ((), ("ground_truth/crack/000_mask.png",), "ground_truth/crack", "remove the masks"),
        (
            ("train/good/000.png", "train/good/001.JPG"),
            (),
            "train/good",
            "put normal pictures there",
        ),
        (("test/good/000.png",), (), "test/good", "put normal pictures there"),
        (("test/dent/000.png", "test/dent/001.PNG"), (), "test/dent", "remove the folder"),
        ((), ("test/dent/000.bmp",), "test/dent/000.png", "keep one"),
    ],
)
def test_incomplete_folders_are_one_line(root, remove, add, named, advice):
    change(root, remove, add)
    with pytest.raises(UserError) as caught:
        Layout.named("mvtec_ad").read(root, "MVTec-AD", "bolt")
    message = str(caught.value)
    assert named in message and advice in message and "\n" not in message


def test_category_without_defects(root):
    change(root, [name for name in TREE if "dent" in name or "scratch" in name])
    for folder in ("test/dent/.hidden.png", "ground_truth/dent/Thumbs.db"):
        (root / "bolt" / folder).unlink()
    for folder in ("test/dent", "test/scratch"):
        (root / "bolt" / folder).rmdir()
    with pytest.raises(UserError, match="no defect types"):
        Layout.named("mvtec_ad").read(root, "MVTec-AD", "bolt")


def test_check_names_the_folder_and_the_key(root):
    Layout.named("mvtec_ad").check(root, ["bolt"], "MVTec-AD")
    Layout.named("procedural").check(root / "nowhere", ["disc"])
    with pytest.raises(UserError) as caught:
        Layout.named("mvtec_ad").check(root, ["bolt", "nut"], "MVTec-AD")
    message = str(caught.value)
    assert (
        message.startswith(f"{root}/nut: no such folder")
        and "prepare.datasets.MVTec-AD.root" in message
        and "\n" not in message
    )
    with pytest.raises(UserError, match="no such raw layout; known: btad"):
        Layout.named("mvtec").check(root, ["bolt"])


def test_parse_time_modules_are_light():
    code = (
        "import sys, helixbench.datasets.fingerprint, helixbench.datasets.layout as layout; "
        "assert len(layout.Layout.every()) > 7; "
        "print({'torch', 'numpy', 'scipy', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that were hashed."""
    names = []
    real = fingerprint.sha256
    monkeypatch.setattr(
        fingerprint, "sha256", lambda path: names.append(Path(path).name) or real(path)
    )
    return names


def test_fingerprint_follows_content_only(root, tmp_path, hashed):
    cache = tmp_path / "cache.json"
    first = fingerprint.fingerprint(root, "bolt", cache)
    assert sorted(json.loads(first)) == sorted(TREE)
    hashed.clear()
    assert fingerprint.fingerprint(root, "bolt", cache) == first
    assert hashed == []
    os.utime(root / "bolt/train/good/000.png", (1_100_000_000, 1_100_000_000))
    assert fingerprint.fingerprint(root, "bolt", cache) == first
    assert hashed == ["000.png"]
    old(root / "bolt/train/good/000.png", b"another picture")
    assert fingerprint.fingerprint(root, "bolt", cache) != first


def test_fingerprint_of_files_that_come_and_go(root, tmp_path):
    cache = tmp_path / "cache.json"
    first = fingerprint.fingerprint(root, "bolt", cache)
    old(root / "bolt/train/good/002.png", b"more")
    assert fingerprint.fingerprint(root, "bolt", cache) != first
    (root / "bolt/train/good/002.png").unlink()
    (root / "bolt/license.txt").write_text("changed")
    assert fingerprint.fingerprint(root, "bolt", cache) == first


def test_fingerprint_does_not_trust_a_file_that_has_just_changed(root, tmp_path):
    cache, path = tmp_path / "cache.json", root / "bolt/train/good/000.png"
    path.write_bytes(b"aaaa")
    stamp = path.stat().st_mtime_ns
    first = fingerprint.fingerprint(root, "bolt", cache)
    path.write_bytes(b"bbbb")
    os.utime(path, ns=(stamp, stamp))  # same size, same clock tick
    assert fingerprint.fingerprint(root, "bolt", cache) != first


def test_fingerprint_is_the_same_elsewhere_and_survives_a_bad_cache(root, tmp_path):
    first = fingerprint.fingerprint(root, "bolt", tmp_path / "a.json")
    root.rename(tmp_path / "moved")
    (tmp_path / "b.json").write_text("{broken")
    assert fingerprint.fingerprint(tmp_path / "moved", "bolt", tmp_path / "b.json") == first


def test_categories_share_a_cache(root, tmp_path, hashed):
    old(root / "nut/train/good/000.png", b"nut")
    cache = tmp_path / "cache.json"
    texts = [fingerprint.fingerprint(root, name, cache) for name in ("bolt", "nut")]
    hashed.clear()
    assert [fingerprint.fingerprint(root, name, cache) for name in ("bolt", "nut")] == texts
    assert hashed == []


def test_fingerprint_of_a_missing_category(tmp_path):
    with pytest.raises(UserError, match="nowhere.*No such file"):
        fingerprint.fingerprint(tmp_path, "nowhere", tmp_path / "cache.json")
