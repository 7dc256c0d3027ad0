"""What happens to a run whose machine fails: killed, out of disk, read-only, with damaged or
altered files."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import time
from pathlib import Path

import pytest
from disks import disk, fill, mounts, read_only
from stages import STAGES, Run, contents, half_files

from helixbench.engine.checkpoint import load_tensors
from helixbench.provenance import claim

KILLS = int(os.environ.get("HELIXBENCH_KILLS", "8"))
"""Over all stages; `make faults` takes 50."""

STEPS, PAIRS, BATCH = 15, 24, 3
CHANGES = {
    "train": {
        "methods": {
            "dhdiff": {"optim": {"steps": STEPS, "save_every_s": 1e-9, "log_every_s": 1e-9}}
        }
    },
    "generate": {
        "pairs": PAIRS // 4,
        "batch": BATCH,
        "sampling": {"steps": 4},
        "gate": {"min_area": 0.0, "max_area": 1.0, "max_border": 1.0},
    },
    "detect": {
        "use": ["classification", "segmentation"],
        "localization": {"optim": {"steps": STEPS, "save_every_s": 0.2, "log_every_s": 1e-9}},
        "classification": {
            "network": "resnet18",
            "weights": "none",
            "optim": {"steps": 1, "batch": 4, "lr": 1e-3},
        },
        "segmentation": {
            "networks": {"unet": "resnet18"},
            "optim": {"steps": 2, "batch": 4, "lr": 1e-3},
        },
    },
}
"""States are saved often enough to be gone on from; all pairs pass the gate, so that a detector
reads them.

PAIRS are those of the four defect types together."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    """Every stage, unbroken; and how long each took."""
    run = Run(tmp_path_factory.mktemp("whole"), CHANGES)
    run.do("draw", "prepare", "base")
    run.seconds = {}
    for stage in STAGES:
        begun = time.monotonic()
        run.do(stage)
        run.seconds[stage] = time.monotonic() - begun
    return run


def told_next(state: Path) -> str | None:
    """What the next attempt has to say of the states that a killed one has left; None when it left
    none."""
    blocks = len(list(state.glob("block*.json")))
    if blocks:
        return f"{PAIRS - BATCH * blocks} of {PAIRS} pairs to make"
    left = [
        file
        for file in (state / "state.safetensors", state / "state.before.safetensors")
        if file.is_file()
    ]
    return f"resuming at step {load_tensors(left[0])[1]['step']} of {STEPS}" if left else None


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_random_moments_a_stage_goes_on_and_ends_with_the_same_bytes(
    whole, stage, tmp_path, record_property
):
    rng = random.Random(f"{stage} {KILLS}")
    expected, out, state = contents(whole.folder / stage), tmp_path / "out", tmp_path / "state"
    wanted = KILLS // len(STAGES) + (STAGES.index(stage) < KILLS % len(STAGES))
    killed = resumed = 0

    def check(process, ended: bool) -> int:
        """1 when the attempt went on from what there was before it; one that was killed too early
        to tell says nothing."""
        if not before or not (ended or re.search(rf" \d+/{STEPS} |pairs to make", process.text)):
            return 0
        assert before in process.text, process.text
        return 1

    while killed < wanted:
        before = told_next(state)
        process = whole.start(stage, out, state, " killed")
        if (
            stage != "score" and not killed
        ):  # scoring alone keeps no state; of the others one kill leaves one for certain
            while (
                process.wait(0.001) is None
                and not any(state.glob("block*.json"))
                and not (state / "state.safetensors").is_file()
            ):
                pass
        else:
            process.wait(rng.uniform(0, whole.seconds[stage]))
        if process.kill():
            killed += 1
            resumed += check(process, ended=False)
        else:  # it was faster this time: from the start again
            assert process.wait() == 0, process.text
            resumed += check(process, ended=True)
            assert contents(out) == expected
            shutil.rmtree(out)
    before = told_next(state)
    process = whole.start(stage, out, state, " last")
    assert process.wait(600) == 0, process.text
    resumed += check(process, ended=True)
    assert resumed or stage == "score"
    assert contents(out) == expected and not half_files(out)
    if stage in ("train", "detect"):
        rows = [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]
        steps = [row["step"] for row in rows if "lr" in row]
        assert (
            steps == sorted(set(steps)) and steps[-1] == STEPS
        )  # none is told twice or out of order
    record_property("kills", killed)
    record_property("resumed", resumed)


ROOM = {"prepare": 40_000, "train": 300_000, "generate": 30_000, "gather": 0, "score": 0}
ROOM |= {"detect": 200_000, "classify": 200_000, "segment": 200_000, "report": 8_192}
"""Bytes that are left to a stage: too few, in the middle of its work where it writes more than
once."""


def our_line(process) -> str:
    assert process.wait(600) == 2, process.text
    lines = [line for line in process.text.splitlines() if line.startswith("helixbench: ")]
    assert len(lines) == 1 and "Traceback" not in process.text, process.text
    return lines[0]


@mounts
@pytest.mark.parametrize("stage", ROOM)
def test_a_full_disk_is_one_line_leaves_no_half_file_and_is_gone_on_from(whole, stage, tmp_path):
    if stage in ("classify", "segment", "report"):
        whole.do(stage)
    with disk(tmp_path / "disk") as small:
        out, state = small / "out", small / "state"
        if stage == "gather":
            whole.do("part")
            shutil.copytree(whole.folder / "part", out)
            shutil.copytree(whole.folder / "generate", whole.folder / "gather", dirs_exist_ok=True)
        out.mkdir(exist_ok=True)
        ballast = fill(small, ROOM[stage])
        assert "no space left on the disk" in our_line(whole.start(stage, out, state, " full"))
        assert (
            not half_files(small)
            and not (out / "manifest.json").exists()
            and not (out / "manifest.csv").exists()
        )
        ballast.unlink()
        process = whole.start(stage, out, state, " room")
        assert process.wait(600) == 0, process.text
        assert contents(out) == contents(whole.folder / stage)


@mounts
def test_a_read_only_results_folder_is_one_line(whole, tmp_path):
    with disk(tmp_path / "disk") as place:
        (place / "out").mkdir()
        read_only(place)
        for stage in ("prepare", "train", "generate", "score", "detect", "report"):
            process = whole.start(stage, place / "out", tmp_path / f"{stage}.state", " read-only")
            assert "the file system is read-only" in our_line(process)


@pytest.mark.parametrize("damage", ["cut off", "a bit flipped", "emptied"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_gone_on_from(whole, damage, tmp_path):
    out, state = tmp_path / "out", tmp_path / "state"
    process = whole.start("train", out, state, " killed")
    file, one_before = state / "state.safetensors", state / "state.before.safetensors"
    while process.wait(0.001) is None and not (file.is_file() and one_before.is_file()):
        pass
    assert process.kill(), f"trained before it could be killed: {process.text}"
    if not file.is_file():  # killed between the two renames of a save
        shutil.copyfile(one_before, file)
    data = bytearray(file.read_bytes())
    if damage == "a bit flipped":
        data[-1000] ^= 4
    file.write_bytes(
        {"cut off": data[: len(data) // 2], "a bit flipped": data, "emptied": b""}[damage]
    )
    process = whole.start("train", out, state, " damaged")
    assert process.wait(600) == 0, process.text
    assert f"{file}: not a readable checkpoint" in process.text
    assert ("sha256 differs" in process.text) == (damage == "a bit flipped")
    assert "resuming at step" in process.text and contents(out) == contents(whole.folder / "train")


def test_without_a_good_checkpoint_the_training_says_so(whole, tmp_path):
    state = tmp_path / "state"
    claim(state)
    (state / "state.safetensors").write_bytes(b"nothing")
    assert "state.safetensors: not a readable checkpoint" in our_line(
        whole.start("train", tmp_path / "out", state, " bad")
    )


@pytest.mark.parametrize("stage", ["train", "generate", "detect", "classify"])
def test_a_state_folder_of_somebody_else_is_refused_and_whole(whole, tmp_path, stage):
    """It is removed when a stage has ended."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state/thesis.txt").write_text("mine")
    line = our_line(whole.start(stage, tmp_path / "out", tmp_path / "state", " of others"))
    assert "state: holds files that helixbench did not write" in line
    assert (tmp_path / "state/thesis.txt").read_text() == "mine"


@pytest.fixture
def copy(whole, tmp_path) -> Run:
    """A finished run to spoil."""
    shutil.copytree(whole.folder, tmp_path / "copy")
    return Run(tmp_path / "copy", CHANGES)


@pytest.mark.parametrize("stage", ["score", "detect"])
@pytest.mark.parametrize("change", ["deleted", "altered"])
def test_a_pair_that_was_deleted_or_altered_is_noticed(copy, stage, change):
    picture = sorted(
        (copy.folder / "generate").rglob("*_mask.png" if stage == "detect" else "disc/test/*/*.png")
    )[1]
    if change == "deleted":
        picture.unlink()
    else:
        picture.write_bytes(picture.read_bytes().replace(b"IDAT", b"IDAU", 1))
    line = our_line(copy.start(stage, name=" altered"))
    assert picture.name in line


@pytest.mark.parametrize("stage, reader", [("train", "generate"), ("base", "train")])
@pytest.mark.parametrize("change", ["deleted", "altered"])
def test_a_trained_model_that_was_deleted_or_altered_is_noticed(copy, stage, reader, change):
    file = next((copy.folder / stage).rglob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.unlink() if change == "deleted" else file.write_bytes(data)
    assert str(copy.folder / stage) in our_line(copy.start(reader, name=" altered"))
