"""Folders as people have them: what is in them is read, or a line says what lies there instead."""

from __future__ import annotations

import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helixbench.datasets.layout import Layout
from helixbench.datasets.problems import Problems
from helixbench.errors import UserError
from helixbench.prepare import importing

NFD = unicodedata.normalize("NFD", "Prüfung")


def save(file: Path, array: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file)
    return file


def picture(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(120, 12, (24, 32, 3))
    return noise.clip(0, 255).astype(np.uint8)


def marked() -> np.ndarray:
    mask = np.zeros((24, 32), np.uint8)
    mask[6:14, 8:20] = 255
    return mask


@pytest.fixture
def gear(tmp_path) -> Path:
    """A whole category in the layout of MVTec AD."""
    gear = tmp_path / "raw/gear"
    for i in range(6):
        save(gear / f"train/good/{i:03d}.png", picture(i))
        save(gear / f"test/good/{i:03d}.png", picture(10 + i))
    for i in range(4):
        save(gear / f"test/crack/{i:03d}.png", picture(20 + i))
        save(gear / f"ground_truth/crack/{i:03d}_mask.png", marked())
    return gear


def seen(gear: Path, layout: str = "mvtec_ad") -> tuple[int, Problems]:
    """How many pictures are read, and what there is to say."""
    problems = Problems(collect=True)
    return len(Layout.named(layout).read(gear.parent, "Data", gear.name, problems)), problems


def renamed(file: Path, name: str) -> None:
    file.rename(file.with_name(name))


# ---------------------------------------------------------------- read as they are


def umlaut_in_two_forms(gear: Path) -> None:
    """macOS and Linux write it in two ways."""
    renamed(gear / "test/crack/000.png", f"{NFD}.png")
    renamed(gear / "ground_truth/crack/000_mask.png", "Prüfung_mask.png")
    renamed(gear / "test/crack", NFD)
    renamed(gear / "ground_truth/crack", "Prüfung")


def junk_of_servers(gear: Path) -> None:
    for folder in ("test/@eaDir", "test/crack/@eaDir", "test/#recycle", ".ipynb_checkpoints"):
        save(gear / folder / "000.png", picture(0))
    (gear / "train/good/.DS_Store").write_bytes(b"x")


def kept_by_its_hash(gear: Path, store: str) -> None:
    """Every picture is a link to where a tool keeps it."""
    for i, file in enumerate(sorted(gear.rglob("*.png"))):
        target = gear.parents[1] / store.format(i=i)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, target)
        file.symlink_to(target)


STORES = {
    "DVC": ".dvc/cache/files/md5/{i:02x}/" + "a" * 30,
    "DVC outside": "cache/files/md5/{i:02x}/" + "b" * 30,
    "git-annex": ".git/annex/objects/{i}/k/k",
    "Hugging Face": "hub/blobs/{i:064x}",
}


@pytest.mark.parametrize("spoil", [umlaut_in_two_forms, junk_of_servers])
def test_what_is_usual_is_read(gear, spoil):
    spoil(gear)
    count, problems = seen(gear)
    assert (count, problems.lines) == (16, [])


@pytest.mark.parametrize("store", STORES.values(), ids=STORES)
def test_links_to_a_store_of_hashes_are_followed(gear, store):
    kept_by_its_hash(gear, store)
    assert (seen(gear)[0], seen(gear)[1].lines) == (16, [])


def test_other_links_out_of_the_root_are_not(gear):
    kept_by_its_hash(gear, "elsewhere/{i}.png")
    (line,) = seen(gear)[1].lines
    assert "links to" in line and "(and 19 more)" in line


# ---------------------------------------------------------------- told


def nested(gear: Path) -> None:
    save(gear / "train/good/cam2/000.png", picture(0))


def nested_alone(gear: Path) -> None:
    (gear / "cam").mkdir()
    shutil.move(gear / "train/good", gear / "cam/good")
    shutil.move(gear / "cam/good", gear / "train/good/cam2")


def all_gif(gear: Path) -> None:
    for file in list((gear / "train/good").iterdir()):
        Image.open(file, formats=("PNG",)).save(file.with_suffix(".gif"))
        file.unlink()


TOLD = {
    "folders below the pictures": (nested, "good/cam2: a folder of 1 picture, not read; move"),
    "pictures one level below": (nested_alone, "no pictures; there are some one level below, in"),
    "pictures that nobody reads": (all_gif, "that can be read; 6 files .gif are there: convert"),
}


@pytest.mark.parametrize("spoil, line", TOLD.values(), ids=TOLD)
def test_what_is_not_read_is_told(gear, spoil, line):
    spoil(gear)
    problems = seen(gear)[1]
    assert any(line in text for text in [*problems.lines, *problems.odd]), problems


def test_a_mask_that_is_missing_is_asked_for_by_the_layout_s_own_name(tmp_path):
    gear = tmp_path / "raw/01"
    for i in range(4):
        save(gear / f"train/ok/{i}.bmp", picture(i))
        save(gear / f"test/ok/{i}.bmp", picture(10 + i))
        save(gear / f"test/ko/{i}.bmp", picture(20 + i))
        save(gear / f"ground_truth/ko/{i}.bmp.png", marked())
    lines = [line for line in seen(gear, "btad")[1].lines if "its mask" in line]
    assert len(lines) == 4
    assert (
        "ground_truth/ko/0.png is missing (0.bmp.png is there, which is not its name)" in lines[0]
    )


def test_twelve_bits_in_sixteen_are_told(gear, capsys):
    for i, file in enumerate(sorted(gear.glob("*/*/*.png"))):
        if "ground_truth" not in str(file):  # no two alike
            deep = np.random.default_rng(i).integers(0, 4096, (24, 32)).astype(np.uint16)
            Image.fromarray(deep).save(file)
    importing.run("mvtec_ad", gear.parent)
    assert "16-bit grey that uses about 12 of its 16 bits" in capsys.readouterr().out


def test_folders_that_a_manifest_names_are_not_called_unread(gear, capsys):
    root = gear.parent
    rows = [f"gear/train/good/{i:03d}.png,,good,train" for i in range(6)]
    rows += [f"gear/test/good/{i:03d}.png, ,good,test" for i in range(6)]
    rows += [
        f"gear/test/crack/{i:03d}.png , gear/ground_truth/crack/{i:03d}_mask.png,crack,test"
        for i in range(4)
    ]
    text = "image, mask, defect, split\n" + "\n".join([*rows, ",,,"]) + "\n"
    (root / "manifest.csv").write_text(text)
    importing.run("folder", root)
    assert "odd things: 0" in capsys.readouterr().out
    listed = Layout.named("folder").shared_files(root, "raw")
    assert all(path.is_file() for path in listed) and len(listed) == 21


def test_a_set_of_which_one_object_is_unpacked_is_read(tmp_path, capsys):
    root, rows = tmp_path / "visa", ["object,split,label,image,mask"]
    for name in ("candle", "pcb1"):
        for split, label, count in (("train", "normal", 6), ("test", "normal", 4)):
            for i in range(count):
                file = f"{name}/Data/Images/Normal/{split}{i}.png"
                rows.append(f"{name},{split},{label},{file},")
                if name == "candle":
                    save(root / file, picture(i + 10 * (split == "test")))
        for i in range(4):
            file, mask = f"{name}/Data/Images/Anomaly/{i}.png", f"{name}/Data/Masks/Anomaly/{i}.png"
            rows.append(f"{name},test,anomaly,{file},{mask}")
            if name == "candle":
                save(root / file, picture(30 + i))
                save(root / mask, marked())
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text("\n".join(rows) + "\n")
    importing.run("visa", root)
    told = capsys.readouterr().out
    assert "names objects that are not there: pcb1" in told and "pictures: 14" in told
    with pytest.raises(UserError, match="one object of VisA; give .*visa"):
        importing.run("visa", root / "candle")


def test_a_fifo_or_a_device_ends_no_reading(gear):
    os.mkfifo(gear / "train/good/900.png")
    (gear / "train/good/901.png").symlink_to("/dev/zero")
    lines = seen(gear)[1].lines
    assert any("900.png: neither a file nor a folder" in line for line in lines), lines
    assert any("/dev/zero" in line or "901.png" in line for line in lines), lines
