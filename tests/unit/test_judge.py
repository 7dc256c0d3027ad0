"""`helixbench score` and `helixbench detect` on folders from elsewhere."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helixbench import cli
from helixbench.datasets.procedural import render
from helixbench.errors import UserError
from helixbench.prepare import judge
from helixbench.records import Score, read_csv
from helixbench.schema import Procedural

DOCS = Path(__file__).parents[2] / "docs/judge.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.S)


def draw(root, seed):
    sizes = Procedural(size=72, train_good=6, test_good=3, per_defect=3)
    render.draw(root, "D", "disc", sizes, seed)
    return root / "disc"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Folders of the documented names: pairs and real ones of different draws, in another size than
    asked for."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("pairs", "real", "held_out")):
        shutil.move(draw(tmp_path / str(seed), seed), tmp_path / name)
    shutil.rmtree("pairs/train")
    shutil.rmtree("pairs/test/good")
    for name, text in zip(
        ("score.yaml", "detect.yaml"),
        (text for kind, text in BLOCKS if kind == "yaml"),
        strict=True,
    ):
        Path(name).write_text(text, encoding="utf-8")
    return tmp_path


def command(line):
    return subprocess.run(
        [sys.executable, "-m", "helixbench.cli", *line], capture_output=True, text=True, timeout=300
    )


def test_the_documented_example_runs(folders):
    (lines,) = [text for kind, text in BLOCKS if kind == "bash"]
    for line in lines.strip().splitlines():
        done = command([*shlex.split(line)[1:], "--threads", "1"])
        assert done.returncode == 0, done.stderr[-3000:]
    scores = {(row.defect, row.metric): row for row in read_csv(Path("scores.csv"), Score)}
    assert {
        "inception_score",
        "kid",
        "ic_lpips",
        "ic_lpips_defect",
        "mask_agreement",
        "gate_failed",
    } <= {metric for _, metric in scores}
    row = scores["all", "ic_lpips"]
    assert (row.method, row.category, row.split) == (
        "pairs",
        "real",
        "given",
    ) and "64 px, 3 images" in row.protocol
    rows = {
        row.metric: row
        for row in read_csv(Path("detector/scores.csv"), Score)
        if row.defect == "all"
    }
    assert {"image_auroc", "pixel_ap", "pro"} <= set(rows) and "unet(width 16) given split" in rows[
        "pro"
    ].protocol
    assert Path("detector/predictions.png").is_file() and not Path("detector.state").exists()


def test_pairs_that_are_no_masks_are_counted_not_refused(folders):
    mask = next(Path("pairs/ground_truth").glob("*/*.png"))
    Image.fromarray(np.zeros((72, 72), np.uint8)).save(mask)
    with judge.to_score(Path("pairs"), Path("real"), name="m", size=32) as given:
        text = (given.pairs / "manifest.csv").read_text()
    assert text.count(",empty,") == 1 and ",ok," in text


def test_a_folder_as_generate_writes_it_is_one_too(folders):
    Path("made").mkdir()
    shutil.move("pairs", "made/disc")
    with judge.to_score(Path("made"), Path("real"), name="m", size=32) as given:
        assert (given.pairs / "manifest.csv").is_file()


def test_a_test_picture_among_the_pairs_stops_it(folders):
    defect = next(path for path in Path("held_out/test").iterdir() if path.name != "good")
    shutil.copy(next(defect.iterdir()), f"pairs/test/{defect.name}/copied.png")
    shutil.copy(
        next(Path("held_out/ground_truth", defect.name).iterdir()),
        f"pairs/ground_truth/{defect.name}/copied_mask.png",
    )
    with pytest.raises(UserError, match="the same picture as .*copied.png, which is in training"):
        with judge.to_detect(Path("pairs"), Path("real"), Path("held_out"), name="m", size=32):
            pass


def no(path):
    return lambda: shutil.rmtree(path)


def two_categories():
    shutil.copytree("pairs", "both/one")
    shutil.copytree("pairs", "both/two")


def another_type():
    for folder in ("test", "ground_truth"):
        next(path for path in Path("pairs", folder).iterdir() if path.name != "good").rename(
            Path("pairs", folder, "rust")
        )


BAD = {
    "two categories": (
        ["score", "--pairs", "both", "--real", "real"],
        r"both: several categories in it \(one, two\)",
        two_categories,
    ),
    "another type": (
        ["score", "--pairs", "pairs", "--real", "real"],
        r"pairs: no picture of rust in real \(.+\); name",
        another_type,
    ),
    "no such pairs": (
        ["score", "--pairs", "nowhere", "--real", "real"],
        "nowhere: no folder test/ in it",
        None,
    ),
    "no real": (["score", "--pairs", "pairs"], "score: --real not given", None),
    "no test": (
        ["detect", "--pairs", "pairs", "--normals", "real"],
        "detect: --test not given",
        None,
    ),
    "no masks": (
        ["score", "--pairs", "pairs", "--real", "real"],
        "its mask .* is missing",
        no("pairs/ground_truth"),
    ),
    "no good": (
        ["detect", "--pairs", "pairs", "--normals", "real", "--test", "held_out"],
        "metrics need both",
        no("held_out/test/good"),
    ),
    "no normals": (
        ["detect", "--pairs", "pairs", "--normals", "real", "--test", "held_out"],
        "no normal pictures",
        no("real/train"),
    ),
    "settings": (
        ["score", "--pairs", "pairs", "--real", "real", "--settings", "detect.yaml"],
        "width: no such key",
        None,
    ),
    "half a workflow call": (
        ["score", "m", "D", "--pairs", "pairs"],
        "score: CATEGORY, --config, --prepared not given",
        None,
    ),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_is_one_line(folders, case, monkeypatch, capsys):
    line, message, damage = case
    if damage:
        damage()
    monkeypatch.setattr(sys, "argv", ["helixbench", *line, "-o", "out"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    text = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2 and re.search(message, text), text
    assert not Path("out").exists()
