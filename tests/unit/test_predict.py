"""A trained detector on new pictures, and as ONNX: maps, scores, verdicts, unreadable files."""

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import small
from PIL import Image

from helixbench.cli import main
from helixbench.config import Slice
from helixbench.detect import export, predict
from helixbench.detect.classification import Classification
from helixbench.detect.detector import Job
from helixbench.detect.localization import Localization
from helixbench.detect.trained import Classifier, Localizer
from helixbench.errors import UserError, UserErrors
from helixbench.generate import stage as generate_stage
from helixbench.pictures.raw import read_mask, read_rgb, resize_rgb
from helixbench.protocol import Protocol
from helixbench.records import Sample, Score, read_csv, write_csv

OPTIM = {"steps": 60, "batch": 4, "lr": 3e-3, "precision": "fp32"}
SETTINGS = {
    "run.seed": 1,
    "detect.false_alarms": 0.1,
    "detect.localization": {"width": 8, "score_window": 5, "optim": OPTIM},
    "detect.classification": {
        "network": "resnet18",
        "weights": "none",
        "optim": {**OPTIM, "steps": 8},
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a detector and a classifier of bright holes and dark scratches; 9 of 24 normals
    are for calibration.
    """
    folder = tmp_path_factory.mktemp("run")
    data = small.prepared(folder / "disc", normals=24)
    samples = read_csv(data / "samples.csv", Sample)
    kept = [s.id for s in samples if s.role == "normal"][:9]
    changed = [replace(s, role="calibration") if s.id in kept else s for s in samples]
    write_csv(data / "samples.csv", changed, Sample)
    split = {"rule": "half", "sha256": "f" * 64, "calibration": {"share": 0.375, "normal": kept}}
    (data / "split.json").write_text(json.dumps(split))
    values = {"run.seed": 0, "generate": {"pairs": 6, "gate": {"min_area": 0.0}}}
    values["train.methods.crop_paste"] = {"kind": "crop_paste"}
    one = ("crop_paste", "Data", "disc", Slice(values))
    state = folder / "state"
    generate_stage.run(*one, prepared=data, model=None, state=state, out=folder / "pairs")
    for kind, name in ((Localization, "seed0"), (Classification, "classification0")):
        job = Job(*one[:3], 0, data, folder / "pairs", folder / f"{name}.state", folder / name)
        kind(job, Slice(SETTINGS)).run()
    return folder


@pytest.fixture(scope="module")
def photos(run, tmp_path_factory):
    """The held-out pictures, in other sizes and formats, in a folder of folders."""
    folder = tmp_path_factory.mktemp("photos")
    kinds = {"a.png": (64, 64), "b.jpg": (90, 50), "c.bmp": (32, 32)}
    for defect in ("good", "hole"):
        (folder / defect).mkdir()
        for i, (name, size) in enumerate(kinds.items()):
            with Image.open(run / f"disc/images/test_{defect}_00{i}.png") as picture:
                picture.resize(size, Image.Resampling.NEAREST).save(folder / defect / name)
    return folder


def files(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def rows(out):
    with open(out / "predictions.csv", newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_maps_scores_and_verdicts_of_pictures_of_any_size(run, photos, tmp_path):
    out = tmp_path / "out"
    assert predict.run(run / "seed0", [photos], out, threshold=0.3) == []
    table = rows(out)
    assert [Path(row["picture"]).relative_to(photos).as_posix() for row in table] == [
        *("good/a.png", "good/b.jpg", "good/c.bmp"),
        *("hole/a.png", "hole/b.jpg", "hole/c.bmp"),
    ]
    assert [row["verdict"] for row in table] == ["normal"] * 3 + ["defective"] * 3
    types = Classifier.read(run / "classification0")
    for row in table[3:]:  # as the classifier says, right or wrong: it has learned for a second
        small = resize_rgb(read_rgb(row["picture"]), types.size)
        assert row["defect"] == types.defect(small)[0]
    assert [row["defect"] for row in table[:3]] == [""] * 3
    sizes = [(row["width"], row["height"]) for row in table[:3]]
    assert sizes == [("64", "64"), ("90", "50"), ("32", "32")]
    for row in table:
        with Image.open(out / row["map"]) as picture:
            values = np.asarray(picture)
        assert values.dtype == np.uint16 and values.shape == (int(row["height"]), int(row["width"]))
        overlay, photo = read_rgb(out / row["overlay"]), read_rgb(row["picture"])
        changed = (overlay != photo).any()
        assert changed == (row["verdict"] == "defective"), "contours on defects, and on them only"
    # at the working size the map is the network's, and high on the defect
    mask = read_mask(run / "disc/masks/test_hole_002.png")
    assert values[mask].mean() > 4 * values[~mask].mean() > 0
    localizer = Localizer.read(run / "seed0")
    expected, score = localizer.map_and_score(read_rgb(run / "disc/images/test_hole_002.png"))
    assert np.array_equal(values, np.rint(predict.FULL * expected).astype(np.uint16))
    content = json.loads((out / "predictions.json").read_text())
    assert content["pictures"][5]["score"] == float(table[5]["score"]) == score
    assert content["detector"]["category"] == "disc" and content["threshold"]["value"] == 0.3
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 4 * 2 * 128 and sheet.height > 2 * 128


def test_a_picture_does_not_depend_on_those_beside_it(run, photos, tmp_path):
    predict.run(run / "seed0", [photos / "hole", photos / "good"], tmp_path / "all", threshold=0.3)
    predict.run(run / "seed0", [photos / "hole/b.jpg"], tmp_path / "one", threshold=0.3)
    together = {row["picture"]: row for row in rows(tmp_path / "all")}
    (alone,) = rows(tmp_path / "one")
    beside = together[str(photos / "hole/b.jpg")]
    for kind in ("map", "overlay"):
        name, other = alone.pop(kind), beside.pop(kind)
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "all" / other).read_bytes()
    assert alone == beside
    again = tmp_path / "again"
    predict.run(run / "seed0", [photos / "hole", photos / "good"], again, threshold=0.3)
    assert files(again) == files(tmp_path / "all")


def test_it_says_what_the_test_of_the_detector_said(run, tmp_path):
    """The network that was kept is the one whose scores are in scores.csv."""
    test = sorted((run / "disc/images").glob("test_*.png"))
    predict.run(run / "seed0", test, tmp_path / "out")
    scores = {Path(row["picture"]).stem: float(row["score"]) for row in rows(tmp_path / "out")}
    good = [score for name, score in scores.items() if "good" in name]
    bad = [score for name, score in scores.items() if "good" not in name]
    auroc = np.mean([100 * ((a > b) + 0.5 * (a == b)) for a in bad for b in good])
    with open(run / "seed0/scores.csv", newline="") as handle:
        (written,) = (
            float(row["value"])
            for row in csv.DictReader(handle)
            if (row["defect"], row["metric"]) == ("all", "image_auroc")
        )
    assert auroc == pytest.approx(written, abs=1e-6)


def test_without_a_threshold_there_is_no_verdict(run, photos, tmp_path):
    shutil.copytree(run / "seed0", tmp_path / "seed0")
    os.remove(tmp_path / "seed0/threshold.json")
    predict.run(tmp_path / "seed0", [photos / "hole/c.bmp"], tmp_path / "out")
    (row,) = rows(tmp_path / "out")
    assert row["verdict"] == row["threshold"] == "" and float(row["score"]) > 0
    with pytest.raises(UserError, match="kept no normals for calibration"):
        predict.run(tmp_path / "seed0", [photos], tmp_path / "other", rate=0.1)


def test_the_threshold_of_the_run_is_that_of_its_calibration_pictures(run, tmp_path):
    data = run / "disc"
    kept = json.loads((data / "split.json").read_text())["calibration"]["normal"]
    stored = json.loads((run / "seed0/threshold.json").read_text())
    assert (stored["n"], stored["false_alarms"], stored["smallest_rate"]) == (9, 0.1, 0.1)
    test = sorted((data / "images").glob("test_*.png"))
    normals = [data / f"images/{name}.png" for name in kept]
    predict.run(run / "seed0", [*normals, *test], tmp_path / "out")
    table = {Path(row["picture"]).stem: row for row in rows(tmp_path / "out")}
    scores = {name: float(row["score"]) for name, row in table.items()}
    assert stored["scores"] == {name: scores[name] for name in kept}
    assert 0 <= stored["threshold"] - max(stored["scores"].values()) < 1e-5
    assert {row["threshold"] for row in table.values()} == {str(stored["threshold"])}
    assert {table[name]["verdict"] for name in kept} == {"normal"}
    above = {name: row["verdict"] == "defective" for name, row in table.items() if "test" in name}
    shares = {
        ("all", "recall"): [hit for name, hit in above.items() if "good" not in name],
        ("hole", "recall"): [hit for name, hit in above.items() if "hole" in name],
        ("all", "false_alarms"): [hit for name, hit in above.items() if "good" in name],
    }
    written = {(r.defect, r.metric): r for r in read_csv(run / "seed0/scores.csv", Score)}
    for key, hits in shares.items():
        assert written[key].value == pytest.approx(100 * np.mean(hits))
    assert written["all", "recall"].value > written["all", "false_alarms"].value
    facts = Protocol.parse(written["all", "recall"].protocol).facts
    assert (facts["calibration"], facts["false_alarms"]) == (0.375, 0.1)
    # another rate from the same pictures, and one that they cannot promise
    localizer = Localizer.read(run / "seed0", 0.5)
    assert np.sum(np.array([scores[name] for name in kept]) > localizer.threshold.value) <= 5
    assert localizer.threshold.value < stored["threshold"]
    with pytest.raises(UserError, match="with 9 normals .* below 10.0 % can be promised, not 2 %"):
        predict.run(run / "seed0", test, tmp_path / "never", rate=0.02)


def test_other_normals_choose_the_threshold_anew(run, photos, tmp_path, monkeypatch, capsys):
    normals = tmp_path / "normals"
    normals.mkdir()
    for i in range(24):
        shutil.copy(run / f"disc/images/test_good_{i:03d}.png", normals)
    line = ["helixbench", "predict", str(photos), "--detector", str(run / "seed0"), "--threads"]
    line += ["1", "--calibrate", str(normals), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", line)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    promise = json.loads((tmp_path / "out/predictions.json").read_text())["threshold"]
    assert (promise["rate"], promise["n"]) == (0.1, 24)
    localizer = Localizer.read(run / "seed0")
    scores = [localizer.map_and_score(read_rgb(file))[1] for file in normals.iterdir()]
    # one of the 24 is above it, and with the new picture at most 2 of 25
    assert 0 <= promise["value"] - sorted(scores)[-2] < 1e-5
    monkeypatch.setattr("sys.argv", [*line, "--threshold", "0.3"])
    with pytest.raises(SystemExit):
        main()
    assert "--threshold leaves nothing to choose" in capsys.readouterr().err
    with pytest.raises(UserError, match="with 24 normals .* give more normals"):
        predict.run(run / "seed0", [photos], tmp_path / "x", rate=0.01, normals=[normals])
    without = tmp_path / "seed0"
    shutil.copytree(run / "seed0", without)
    os.remove(without / "threshold.json")
    with pytest.raises(UserError, match="--calibrate needs a rate to promise"):
        predict.run(without, [photos], tmp_path / "x", normals=[normals])
    predict.run(without, [photos / "good"], tmp_path / "y", rate=0.1, normals=[normals])
    assert {row["threshold"] for row in rows(tmp_path / "y")} == {str(promise["value"])}


def test_too_few_normals_for_the_promise_stop_before_the_training(run, tmp_path):
    data, pairs = run / "disc", run / "pairs"
    job = Job("crop_paste", "Data", "disc", 0, data, pairs, tmp_path / "state", tmp_path / "out")
    with pytest.raises(UserError, match="which takes 19; change detect.false_alarms"):
        Localization(job, Slice({**SETTINGS, "detect.false_alarms": 0.05}))
    assert not (tmp_path / "state").exists()


def test_bad_files_are_named_and_left_out(run, photos, tmp_path, monkeypatch, capsys, caplog):
    given = tmp_path / "given"
    shutil.copytree(photos / "hole", given)
    (given / "b.jpg").write_bytes((given / "b.jpg").read_bytes()[:300])
    (given / "notes.txt").write_text("x")
    (given / ".hidden.png").write_text("x")
    line = ["--detector", str(run / "seed0"), "--threads", "1", "--out"]
    out = tmp_path / "out"
    called = ["helixbench", "predict", str(given), str(tmp_path / "no.png"), *line]
    monkeypatch.setattr("sys.argv", [*called, str(out)])
    with pytest.raises(SystemExit) as stop:
        main()
    told = capsys.readouterr().err
    assert stop.value.code == 1 and "b.jpg: unreadable" in told and "no.png: unreadable" in told
    assert [Path(row["picture"]).name for row in rows(out)] == ["a.png", "c.bmp"]
    assert len(json.loads((out / "predictions.json").read_text())["unreadable"]) == 2
    assert "1 files are no pictures, e.g. notes.txt" in caplog.text
    monkeypatch.setattr("sys.argv", [*called, str(tmp_path / "strict"), "--strict"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and not (tmp_path / "strict").exists()
    assert "b.jpg: unreadable" in capsys.readouterr().err
    with pytest.raises(UserErrors, match=r"b\.jpg: unreadable"):
        predict.run(run / "seed0", [given / "b.jpg"], tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no pictures in it"):
        predict.run(run / "seed0", [tmp_path / "empty"], tmp_path / "none")


def test_names_are_told_apart_and_an_earlier_output_is_no_input(run, photos, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(photos, work)
    predict.run(run / "seed0", [work, work / "good/a.png"], work / "out")
    first = rows(work / "out")
    assert len(first) == len({row["map"] for row in first}) == 6
    predict.run(run / "seed0", [work], work / "out")
    assert rows(work / "out") == first
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "work.txt").write_text("of somebody")
    with pytest.raises(UserError, match="holds files that helixbench did not write"):
        predict.run(run / "seed0", [work], theirs)
    assert (theirs / "work.txt").is_file()


def test_folders_that_hold_no_detector_are_one_line(run, photos, tmp_path):
    out = tmp_path / "out"
    earlier = tmp_path / "seed0"
    shutil.copytree(run / "seed0", earlier)
    os.remove(earlier / "network.safetensors")
    with pytest.raises(UserError, match="no network.safetensors in it.*run detect again"):
        predict.run(earlier, [photos], out)
    with pytest.raises(UserError, match="no such folder"):
        predict.run(tmp_path / "nothing", [photos], out)
    with pytest.raises(UserError, match="a classification network; give one of localization"):
        predict.run(run / "classification0", [photos], out)
    whole = (run / "seed0/network.safetensors").read_bytes()
    (earlier / "network.safetensors").write_bytes(whole[:-8] + bytes(8))
    with pytest.raises(UserError, match="not a readable checkpoint"):
        predict.run(earlier, [photos], out)
    assert not out.exists() and Classifier.beside(earlier) is None


# ------------------------------------------------------------------------------------------------
# export


def only(folder, *names):
    """A virtual environment with these installed packages and what they need, and nothing else."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    wanted, seen = list(names), set()
    while wanted:
        name = wanted.pop()
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # of another system
        if name in seen:
            continue
        seen.add(name)
        needs = [need for need in package.requires or [] if "extra ==" not in need]
        wanted += [re.split(r"[ ;<>=!~\[(]", need)[0] for need in needs]
        for top in {file.parts[0] for file in package.files if file.parts[0] != ".."}:
            if not (site / top).exists() and top != "__pycache__":
                (site / top).symlink_to(package.locate_file(top))
    return folder / "bin/python"


def test_an_exported_detector_says_the_same_where_there_is_no_torch(run, photos, tmp_path):
    out = tmp_path / "out"
    export.run(run / "seed0", [photos], out, licence="CC BY-NC 4.0")
    predict.run(run / "seed0", [photos], tmp_path / "torch")
    python = only(tmp_path / "venv", "onnxruntime", "pillow", "numpy")
    given = [row["picture"] for row in rows(tmp_path / "torch")]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    call = [str(python), "-I"]
    torch = subprocess.run([*call, "-c", "import torch"], capture_output=True, env=clean)
    assert b"No module named 'torch'" in torch.stderr
    done = subprocess.run(
        [*call, str(out / "verdict.py"), *given], capture_output=True, text=True, env=clean
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split(",") for line in done.stdout.splitlines()]
    table = rows(tmp_path / "torch")
    assert [line[1:] for line in lines] == [[row["verdict"], row["picture"]] for row in table]
    assert {row["verdict"] for row in table} == {"normal", "defective"}
    scores = [float(row["score"]) for row in table]
    assert [float(line[0]) for line in lines] == pytest.approx(scores, abs=1e-5)
    card = (out / "README.md").read_text()
    stored = json.loads((run / "seed0/threshold.json").read_text())["threshold"]
    assert f"A score above {stored} is defective" in card and "on 9 normal" in card
    assert "CC BY-NC 4.0. A detector trained on them is not for commercial use." in card
    assert "On 6 pictures, against torch" in card and "- split: half" in card
    assert re.search(r"\| all \|( \d+\.\d \|){8}", card)
    assert len(export.EXAMPLE.read_text().splitlines()) <= 26


def test_an_export_that_differs_is_refused(run, photos, tmp_path, monkeypatch):
    honest = export.Exported.forward

    def off(self, picture):
        maps, score = honest(self, picture)
        return maps + 2e-4, score

    monkeypatch.setattr(export.Exported, "forward", off)
    with pytest.raises(
        UserError, match="maps differ from torch's by up to 0.0002 .*at most 0.0001"
    ):
        export.run(run / "seed0", [photos], tmp_path / "out", licence="x")
    assert not (tmp_path / "out").exists()


def test_what_an_export_needs_to_know(run, photos, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="under which licence are the pictures of Data"):
        export.run(run / "seed0", [photos], tmp_path / "out")
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs onnxruntime; install it: pip install onnxruntime"):
        export.run(run / "seed0", [photos], tmp_path / "out", licence="x")


def test_openvino_says_the_same(run, photos, tmp_path):
    pytest.importorskip("openvino", reason="openvino is not installed: nothing else needs it")
    export.run(run / "seed0", [photos], tmp_path / "out", licence="x", openvino=True)
    assert (tmp_path / "out/detector.bin").is_file()
    assert "OpenVINO: maps differ by at most" in (tmp_path / "out/README.md").read_text()
