"""`helixbench judge`: pairs from elsewhere."""

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
from helixbench.protocol import Protocol
from helixbench.records import Score, read_csv
from helixbench.schema import Procedural

DOCS = Path(__file__).parents[2] / "docs/judge.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.S)


def draw(root, seed):
    sizes = Procedural(size=72, train_good=6, test_good=3, per_defect=6)
    render.draw(root, "D", "disc", sizes, seed)
    return root / "disc"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Pairs and real pictures of different draws, in another size than asked for."""
    root = tmp_path_factory.mktemp("drawn")
    for seed, name in enumerate(("pairs", "real", "held_out")):
        shutil.move(draw(root / str(seed), seed), root / name)
    shutil.rmtree(root / "pairs/train")
    shutil.rmtree(root / "pairs/test/good")
    return root


@pytest.fixture
def folders(drawn, tmp_path, monkeypatch):
    """Folders of the documented names."""
    monkeypatch.chdir(tmp_path)
    for name in ("pairs", "real", "held_out"):
        shutil.copytree(drawn / name, name)
    (settings,) = [text for kind, text in BLOCKS if kind == "yaml"]
    Path("settings.yaml").write_text(settings, encoding="utf-8")
    return tmp_path


def command(line):
    return subprocess.run(
        [sys.executable, "-m", "helixbench.cli", *line], capture_output=True, text=True, timeout=300
    )


def test_the_documented_example_runs(folders):
    (line,) = [text for kind, text in BLOCKS if kind == "bash"]
    done = command([*shlex.split(line)[1:], "--threads", "1"])
    assert done.returncode == 0, done.stderr[-3000:]
    scores = {(row.defect, row.metric): row for row in read_csv(Path("judged/scores.csv"), Score)}
    assert {
        "inception_score",
        "kid",
        "ic_lpips",
        "ic_lpips_defect",
        "mask_agreement",
        "gate_failed",
    } <= {metric for _, metric in scores}
    row = scores["all", "ic_lpips"]
    assert (row.method, row.category, row.split) == ("pairs", "real", "given")
    facts = Protocol.parse(row.protocol)
    assert (facts.get("size"), facts.get("n")) == (64, 6)
    rows = {
        row.metric: row
        for row in read_csv(Path("judged/detector/scores.csv"), Score)
        if row.defect == "all"
    }
    assert {"image_auroc", "pixel_ap", "pro"} <= set(rows)
    facts = Protocol.parse(rows["pro"].protocol)
    assert (facts.get("width"), facts.get("split")) == (16, "given")
    assert {path.name for path in Path("judged").iterdir()} == {
        "scores.csv",
        "scores.json",
        "detector",
    }
    assert Path("judged/detector/predictions.png").is_file()


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


SCORED = ["--pairs", "pairs", "--real", "real"]
DETECTED = ["--pairs", "pairs", "--normals", "real", "--test", "held_out", "--real", "real"]
BAD = {
    "two categories": (
        ["--pairs", "both", "--real", "real"],
        r"both: several categories in it \(one, two\)",
        two_categories,
    ),
    "another type": (SCORED, r"pairs: no picture of rust in real \(.+\); name", another_type),
    "no such pairs": (
        ["--pairs", "nowhere", "--real", "real"],
        "nowhere: no folder test/ in it",
        None,
    ),
    "nothing real": (["--pairs", "pairs", "--normals", "real"], "judge: give --test", None),
    "no normals given": (["--pairs", "pairs", "--test", "real"], "--test needs --normals", None),
    "nothing to do": ([*SCORED, "--no-scores"], "--no-scores leaves the detector only", None),
    "no masks": (SCORED, "its mask .* is missing", no("pairs/ground_truth")),
    "no good": (DETECTED, "metrics need both", no("held_out/test/good")),
    "no normals": (DETECTED, "no normal pictures", no("real/train")),
    "unknown section": (
        [*SCORED, "--settings", "train.yaml"],
        "train.yaml: train: no such key here; there are score, detect, generate",
        lambda: Path("train.yaml").write_text("train: {}"),
    ),
    "unknown part of a section": (
        [*SCORED, "--settings", "detect.yaml"],
        "detect.comparators: no such key here; there are detect.localization",
        lambda: Path("detect.yaml").write_text("detect: {comparators: {}}"),
    ),
    "unknown key": (
        [*SCORED, "--settings", "score.yaml"],
        "width: no such key",
        lambda: Path("score.yaml").write_text("score: {width: 3}"),
    ),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_is_one_line(folders, case, monkeypatch, capsys):
    line, message, damage = case
    if damage:
        damage()
    monkeypatch.setattr(sys, "argv", ["helixbench", "judge", *line, "-o", "out"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    text = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2 and re.search(message, text), text
    assert not Path("out").exists()
