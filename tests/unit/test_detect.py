"""The localization U-Net on tiny folders, and what all detectors that learn from pairs share."""

import csv
import dataclasses
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from helixbench.config import Slice, load
from helixbench.detect import localization
from helixbench.detect.classification import Classification
from helixbench.detect.detector import BestOnTest, Job
from helixbench.detect.held_out import HeldOut, Reading
from helixbench.detect.localization import Localization
from helixbench.detect.segmentation import Segmentation
from helixbench.engine import loop
from helixbench.errors import UserError
from helixbench.pictures.outline import GREEN, outlined
from helixbench.pictures.prepared import bilinear_file
from helixbench.protocol import Protocol
from helixbench.records import Pair, Sample, Score, read_csv, write_csv
from helixbench.schema import Localization as Section

ROOT = Path(__file__).parents[2]
SIZE = 32
METRICS = {"image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pro", "f1_max"}


def config(steps=6, **changes):
    optim = {
        "steps": steps,
        "batch": 4,
        "lr": 3e-3,
        "precision": "fp32",
        "ema": changes.pop("ema", 0.0),
    }
    section = {"width": 8, "score_window": 5, "optim": optim, **changes}
    return Slice({"detect.localization": section, "run.seed": 1})


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def draw(rng, defect):
    """A grey picture with a bright or a dark square, and its mask."""
    image = rng.integers(100, 140, (SIZE, SIZE, 3), np.uint8)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    if defect != "good":
        y, x = rng.integers(2, SIZE - 12, 2)
        image[y : y + 9, x : x + 9] = 250 if defect == "bright" else 5
        mask[y : y + 9, x : x + 9] = 255
    return image, mask


@pytest.fixture
def folders(tmp_path):
    rng = np.random.default_rng(0)
    prepared, pairs = tmp_path / "prepare", tmp_path / "pairs"
    samples, rows = [], []
    for defect, role, count in (
        ("good", "normal", 5),
        ("good", "test", 4),
        ("bright", "test", 3),
        ("dark", "test", 3),
    ):
        for i in range(count):
            name = f"{defect}_{role}_{i}"
            image, mask = draw(rng, defect)
            sha = save(prepared / f"images/{name}.png", image)
            path = "" if defect == "good" else f"masks/{name}.png"
            if path:
                save(prepared / path, mask)
            samples.append(
                Sample(
                    name,
                    "toy",
                    "disc",
                    defect,
                    role,
                    f"images/{name}.png",
                    path,
                    "",
                    "",
                    "",
                    "",
                    sha,
                )
            )
    for defect in ("bright", "dark"):
        for i in range(4):
            image, mask = draw(rng, defect)
            a, b = f"disc/test/{defect}/{i:03d}.png", f"disc/ground_truth/{defect}/{i:03d}_mask.png"
            gate = "border" if (defect, i) == ("dark", 1) else "ok"
            rows.append(
                Pair(
                    i,
                    "toy",
                    "disc",
                    defect,
                    "m",
                    a,
                    b,
                    i,
                    "",
                    "",
                    "",
                    "",
                    gate,
                    0,
                    0.1,
                    save(pairs / a, image),
                    save(pairs / b, mask),
                )
            )
    write_csv(prepared / "samples.csv", samples, Sample)
    write_csv(pairs / "manifest.csv", rows, Pair)
    (prepared / "split.json").write_text(json.dumps({"rule": "half", "sha256": "f" * 64}))
    return prepared, pairs


def job(folders, out, seed=0):
    return Job("m", "toy", "disc", seed, *folders, out / "state", out / "out")


def facts(row):
    """What the row's protocol says."""
    return Protocol.parse(row.protocol).facts


def run(folders, tmp_path, values=None, name="run", seed=0):
    out = tmp_path / name
    Localization(job(folders, out, seed), values or config()).run()
    return {(row.defect, row.metric): row for row in read_csv(out / "out/scores.csv", Score)}


def test_rows_and_files(folders, tmp_path):
    rows = run(folders, tmp_path)
    assert set(rows) == {
        (defect, metric) for defect in ("bright", "dark", "all") for metric in METRICS
    }
    assert all(0 <= row.value <= 100 for row in rows.values())
    assert rows["all", "pro"].n == 10 and rows["dark", "pro"].n == 7
    assert {(row.split, row.split_sha256) for row in rows.values()} == {("half", "f" * 64)}
    assert Protocol.parse(rows["all", "pro"].protocol) == Protocol(
        "localization",
        {
            **{"network": "unet", "width": 8, "weights": "none", "split": "half", "size": SIZE},
            **{"gated": True, "checkpoint": "last", "steps": 6, "batch": 4, "lr": 0.003},
            **{"score_window": 5, "precision": "fp32"},
        },
    )
    out = tmp_path / "run/out"
    record = json.loads((out / "manifest.json").read_text())
    assert record["pairs"]["dark"] == {"used": 3, "left_out_by_gate": 1}
    assert (out / "stats.jsonl").read_text().count("\n") >= 1
    with Image.open(out / "predictions.png") as picture:
        assert picture.width >= 3 * SIZE and picture.height >= 9 * SIZE


def test_it_learns(folders, tmp_path):
    rows = run(folders, tmp_path, config(60))
    assert rows["all", "pixel_auroc"].value > 90
    assert rows["all", "image_auroc"].value > 90


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_resume_after_a_kill_equals_an_unbroken_run(folders, tmp_path, monkeypatch, ema):
    values = config(6, ema=ema)
    unbroken = run(folders, tmp_path, values, "unbroken")
    monkeypatch.setattr(
        loop.time, "monotonic", iter(range(10**6)).__next__
    )  # every step is old enough ...
    eager = json.loads(json.dumps(dict(values._values)))
    eager["detect.localization"]["optim"]["save_every_s"] = 0.5  # ... to be saved
    eager = Slice(eager)
    call = Localization.loss

    def killed(self, step, rng):
        if step == 4:
            raise KeyboardInterrupt
        return call(self, step, rng)

    monkeypatch.setattr(Localization, "loss", killed)
    with pytest.raises(KeyboardInterrupt):
        run(folders, tmp_path, eager, "broken")
    assert (tmp_path / "broken/state/state.safetensors").is_file()
    assert not (tmp_path / "broken/out/scores.csv").exists()
    steps = []
    monkeypatch.setattr(
        Localization,
        "loss",
        lambda self, step, rng: (steps.append(step), call(self, step, rng))[1],
    )
    resumed = run(folders, tmp_path, eager, "broken")
    assert steps == [4, 5]
    assert {key: row.value for key, row in resumed.items()} == {
        key: row.value for key, row in unbroken.items()
    }
    # a finished run leaves no state behind, and other pictures are other training
    assert not (tmp_path / "broken/state").exists()
    rows = read_csv(folders[1] / "manifest.csv", Pair)
    write_csv(folders[1] / "manifest.csv", rows[1:], Pair)
    steps.clear()
    run(folders, tmp_path, eager, "broken")
    assert steps == [0, 1, 2, 3, 4, 5]


def test_all_pairs_past_the_gate_train_unless_a_limit_is_set(folders, tmp_path):
    used = {}
    for name, changes in (("all", {}), ("two", {"max_pairs": 2})):
        rows = run(folders, tmp_path, config(1, **changes), name)
        record = json.loads((tmp_path / name / "out/manifest.json").read_text())
        used[name] = {defect: counts["used"] for defect, counts in record["pairs"].items()}
        assert facts(rows["all", "pro"]).get("max_pairs") == changes.get("max_pairs")
    assert used == {"all": {"bright": 4, "dark": 3}, "two": {"bright": 2, "dark": 2}}


def test_seeds_differ_and_methods_share_draws(folders, tmp_path):
    first, second = run(folders, tmp_path), run(folders, tmp_path, seed=1, name="second")
    assert {k: r.value for k, r in first.items()} != {k: r.value for k, r in second.items()}
    assert second["all", "pro"].seed == 1


def test_altered_pictures_are_noticed(folders, tmp_path):
    mask = folders[1] / "disc/ground_truth/dark/002_mask.png"
    save(mask, np.zeros((SIZE, SIZE), np.uint8))
    with pytest.raises(UserError, match=r"dark/002_mask\.png: altered"):
        run(folders, tmp_path)
    assert not (tmp_path / "run/out").exists()


def replace_samples(folders, change):
    samples = [change(s) for s in read_csv(folders[0] / "samples.csv", Sample)]
    write_csv(folders[0] / "samples.csv", [s for s in samples if s], Sample)


def test_a_test_set_without_normals_or_masks_is_an_error(folders, tmp_path):
    samples = read_csv(folders[0] / "samples.csv", Sample)
    replace_samples(
        folders, lambda s: dataclasses.replace(s, mask="") if s.id == "dark_test_1" else s
    )
    with pytest.raises(UserError, match="dark_test_1.png: a defective test picture without a mask"):
        run(folders, tmp_path)
    write_csv(folders[0] / "samples.csv", samples, Sample)
    replace_samples(folders, lambda s: s if not (s.defect == "good" and s.role == "test") else None)
    with pytest.raises(UserError, match="no normal picture has role test"):
        run(folders, tmp_path)
    write_csv(folders[0] / "samples.csv", [s for s in samples if s.role != "normal"], Sample)
    with pytest.raises(UserError, match="no picture has role normal"):
        run(folders, tmp_path)


def test_pairs_that_all_fail_the_gate_give_a_result(folders, tmp_path, caplog):
    rows = read_csv(folders[1] / "manifest.csv", Pair)
    write_csv(
        folders[1] / "manifest.csv", [dataclasses.replace(row, gate="empty") for row in rows], Pair
    )
    assert len(run(folders, tmp_path)) == 18
    assert "no pair passed" in caplog.text


def test_unet_is_seeded_and_leaves_the_global_generator_alone(folders, tmp_path):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first, second, other = (
        Localization(job(folders, tmp_path, seed), config()).build().state_dict()
        for seed in (3, 3, 4)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_focal_loss():
    logits, target = torch.randn(2, 2, 4, 4), torch.randint(0, 2, (2, 4, 4))
    p = logits.softmax(1).gather(1, target[:, None])
    assert torch.allclose(
        localization.focal_loss(logits, target, 2.0), (-((1 - p) ** 2) * p.log()).mean()
    )
    assert torch.allclose(
        localization.focal_loss(logits, target, 0.0),
        torch.nn.functional.cross_entropy(logits, target),
    )


def focal_of(p, gamma=2.0, smooth=localization.SMOOTH):
    """Loss of one anomalous pixel whose true class has probability p."""
    logits = torch.tensor([math.log1p(-p) if p < 1 else -200.0, math.log(p) if p else -200.0])
    target = torch.ones(1, 1, 1, dtype=torch.int64)
    return localization.focal_loss(logits.view(1, 2, 1, 1), target, gamma, smooth).item()


@pytest.mark.parametrize(
    ("p", "gamma", "loss"),
    [
        # p_t = p (1 - 1e-5) + (1 - p) 1e-5 + 1e-5
        (0.9, 2.0, 0.099998**2 * 0.10535829),  # p_t 0.900002
        (0.5, 2.0, 0.49999**2 * 0.69312718),  # p_t 0.50001
        (1e-5, 2.0, 0.99997**2 * 10.414313),  # p_t 3e-5 (less 2e-10)
        (0.0, 2.0, 0.99998**2 * 10.819778),  # p_t 2e-5: no pixel costs more
        (0.0, 1.0, 0.99998 * 10.819778),
        (1.0, 2.0, 0.0),  # p_t 1
    ],
)
def test_the_smoothed_focal_loss_by_hand(p, gamma, loss):
    assert focal_of(p, gamma) == pytest.approx(loss, rel=2e-5, abs=1e-12)


def test_pixels_that_are_surely_wrong_cost_no_more_than_in_the_public_code():
    """Logits of spread 20, half of the pixels wrong: 11.3 without the bound.

    The difference d of two such logits has spread 28.3; the mean of max(d, 0) is 28.3 / sqrt(2 pi).
    Cut at 10.8 it is 4.6.
    """
    rng = torch.Generator().manual_seed(0)
    logits = 20 * torch.randn(4, 2, 64, 64, generator=rng)
    target = torch.randint(0, 2, (4, 64, 64), generator=rng)
    assert localization.focal_loss(logits, target, 2.0).item() == pytest.approx(11.3, abs=0.3)
    bounded = localization.focal_loss(logits, target, 2.0, localization.SMOOTH).item()
    assert bounded == pytest.approx(4.6, abs=0.1)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.5, 2.0])
@pytest.mark.parametrize("smooth", [0.0, localization.SMOOTH])
def test_the_focal_loss_of_sure_pixels_has_a_gradient(gamma, smooth):
    """p of 1 leaves nothing to take a root of; a surely wrong pixel pulls, without smoothing."""
    logits = torch.tensor([[0.0, 100.0], [100.0, 0.0]]).view(2, 2, 1, 1).requires_grad_()
    target = torch.ones(2, 1, 1, dtype=torch.int64)
    localization.focal_loss(logits, target, gamma, smooth).backward()
    right, wrong = logits.grad.abs().amax((1, 2, 3))
    assert right < 1e-6
    assert wrong < 1e-6 if smooth else wrong == pytest.approx(0.5, abs=1e-3)


def test_localization_smooths_its_loss_unless_told_not_to(folders, tmp_path, monkeypatch):
    detector = Localization(job(folders, tmp_path), config())
    detector.data = localization.TrainingSet.from_arrays(np.zeros((1, 32, 32, 3), np.uint8), {})

    def surely_wrong(x):
        return torch.tensor([-100.0, 100.0]).view(1, 2, 1, 1).expand(len(x), 2, 32, 32)

    detector.network = surely_wrong
    assert detector.loss(0, torch.Generator()).item() == pytest.approx(10.819, abs=1e-3)
    monkeypatch.setattr(Localization, "smooth", 0.0)
    assert detector.loss(0, torch.Generator()).item() == pytest.approx(200)


@pytest.mark.parametrize("window", [1, 3, 21])
def test_image_score_is_the_largest_zero_padded_average(window):
    maps = np.random.default_rng(0).random((2, 9, 12)).astype(np.float32)
    padded = np.pad(maps, ((0, 0), (window // 2,) * 2, (window // 2,) * 2))
    expected = [
        max(m[y : y + window, x : x + window].mean() for y in range(9) for x in range(12))
        for m in padded
    ]
    np.testing.assert_allclose(localization.image_scores(maps, window), expected, rtol=1e-5)


def test_batches_have_the_asked_shares():
    blank = np.zeros((3, 4, 4, 3), np.uint8)
    pairs = {
        name: (np.full((n, 4, 4, 3), v, np.uint8), np.ones((n, 4, 4), bool))
        for name, n, v in (("a", 1, 51), ("b", 9, 102))
    }
    data = localization.TrainingSet.from_arrays(
        blank, {**pairs, "none": (blank[:0], np.zeros((0, 4, 4), bool))}
    )
    images, target = data.draw(torch.Generator().manual_seed(0), 4000, 0.3)
    values = images[:, 0, 0, 0]
    shares = [(values - v).abs().lt(1e-6).float().mean().item() for v in (0.0, 0.2, 0.4)]
    assert shares == pytest.approx([0.3, 0.35, 0.35], abs=0.03)
    assert torch.equal(target[:, 0, 0] == 1, values > 0)
    assert data.draw(torch.Generator().manual_seed(1), 8, 0.3)[0].shape == (8, 3, 4, 4)


def test_outline_surrounds_the_mask():
    image, mask = np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), bool)
    mask[5:9, 5:9] = True
    drawn = outlined(image, mask, GREEN)
    assert (drawn[mask] == 0).all() and (drawn[4, 5:9] == (0, 255, 0)).all()
    assert (drawn.any(axis=2)).sum() == 16 and not image.any()


def test_best_on_test_stands_beside_last_and_is_named(folders, tmp_path, monkeypatch):
    """Its rows are the ones of the validated step with the largest sum; they say what chose
    them."""
    values = json.loads(json.dumps(dict(config(30, checkpoints=["last", "best_on_test"])._values)))
    values["detect.localization"]["optim"]["validate_every"] = 10
    seen = []
    call = BestOnTest.__call__
    monkeypatch.setattr(
        BestOnTest, "__call__", lambda self, rng: seen.append(call(self, rng)) or seen[-1]
    )
    run(folders, tmp_path, Slice(values))
    rows = read_csv(tmp_path / "run/out/scores.csv", Score)
    last, best = (
        {r.metric: r for r in rows if r.defect == "all" and facts(r)["checkpoint"] == name}
        for name in ("last", "best_on_test")
    )
    assert set(last) == set(best) == METRICS
    assert facts(best["pro"])["validate_every"] == 10
    assert len(seen) == 3
    total = lambda row: float(sum(row[name] for name in Localization.chosen_by))
    top = max(seen, key=total)
    assert {name: best[name].value for name in METRICS} == pytest.approx(
        {name: float(top[name]) for name in METRICS}, abs=1e-3
    )
    assert {name: last[name].value for name in METRICS} == pytest.approx(
        {name: float(seen[-1][name]) for name in METRICS}, abs=1e-3
    )
    plain = run(folders, tmp_path, config(30), "plain")
    assert {name: last[name].value for name in METRICS} == {
        name: plain["all", name].value for name in METRICS
    }, "looking changes nothing"


def test_best_on_test_survives_a_kill(folders, tmp_path, monkeypatch):
    values = json.loads(json.dumps(dict(config(6, checkpoints=["best_on_test"])._values)))
    values["detect.localization"]["optim"] |= {"validate_every": 1, "save_every_s": 1e-9}
    whole = run(folders, tmp_path, Slice(values), "whole")
    call = Localization.loss

    def killed(self, step, rng):
        if step == 4:
            raise KeyboardInterrupt
        return call(self, step, rng)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Localization, "loss", killed)
        run(folders, tmp_path, Slice(values), "broken")
    assert (tmp_path / "broken/state/best_on_test.safetensors").is_file()
    again = run(folders, tmp_path, Slice(values), "broken")
    assert {key: row.value for key, row in again.items()} == {
        key: row.value for key, row in whole.items()
    }


def test_best_on_test_needs_points_to_choose_from():
    with pytest.raises(ValueError, match="needs optim.validate_every above 0"):
        Section(checkpoints=["best_on_test"], optim={"steps": 1, "batch": 1, "lr": 1e-4})


def test_the_ground_truth_of_the_public_scripts_is_a_switch(folders, tmp_path):
    """Grey pixels are no defect for AUROC, AP and F1, and part of a region for PRO."""
    values = config(6, ground_truth="full_value")
    with pytest.raises(UserError, match="_bilinear.png: No such file"):
        run(folders, tmp_path, values)
    tests = [s for s in read_csv(folders[0] / "samples.csv", Sample) if s.mask]
    exact = run(folders, tmp_path, config(6), "exact")
    for sample in tests:  # masks that no interpolation touched give what `exact` gives
        mask = np.asarray(Image.open(folders[0] / sample.mask))
        save(folders[0] / bilinear_file(sample.mask), mask)
    same = run(folders, tmp_path, values, "same")
    assert {key: row.value for key, row in same.items()} == {
        key: row.value for key, row in exact.items()
    }
    assert facts(same["all", "pro"])["ground_truth"] == "full_value"
    for sample in tests:
        grey = np.asarray(Image.open(folders[0] / sample.mask).filter(ImageFilter.BoxBlur(2)))
        save(folders[0] / bilinear_file(sample.mask), grey)
    samples = read_csv(folders[0] / "samples.csv", Sample)
    read = HeldOut.read(folders[0], samples, Reading("full_value"))
    whole = HeldOut.read(folders[0], samples)
    assert read.masks.sum() < whole.masks.sum() < read.regions.sum()
    other = run(folders, tmp_path, values, "other")
    with open(tmp_path / "other/out/curves.csv", encoding="utf-8") as file:
        points = [
            (float(row["x"]), float(row["y"]))
            for row in csv.DictReader(file)
            if row["curve"] == "pro"
        ]
    x, y = np.array(points).T
    grid = np.linspace(0, 0.3, 3001)
    assert 100 * np.trapezoid(np.interp(grid, x, y), grid) / 0.3 == pytest.approx(
        other["all", "pro"].value, abs=0.5
    )
    assert all(
        other["all", name].value != same["all", name].value
        for name in ("pixel_ap", "pro", "f1_max")
    )
    assert other["all", "image_auroc"].value == same["all", "image_auroc"].value
    for sample in tests:
        save(folders[0] / bilinear_file(sample.mask), np.full((SIZE, SIZE), 254, np.uint8))
    with pytest.raises(
        UserError,
        match="bright: the metrics are not defined, nothing is labelled anomalous; set "
        ".*ground_truth: exact",
    ):
        run(folders, tmp_path, values, "none")


@pytest.mark.parametrize("ground_truth", ["exact", "full_value"])
def test_the_thresholds_of_the_public_scripts_are_a_switch(folders, tmp_path, ground_truth):
    for sample in read_csv(folders[0] / "samples.csv", Sample):
        if sample.mask:
            mask = Image.open(folders[0] / sample.mask).filter(ImageFilter.BoxBlur(1))
            save(folders[0] / bilinear_file(sample.mask), np.asarray(mask))
    exact = run(folders, tmp_path, config(ground_truth=ground_truth), "exact")
    values = config(ground_truth=ground_truth, pro_thresholds=7)
    sampled = run(folders, tmp_path, values, "sampled")
    differing = {key for key, row in sampled.items() if row.value != exact[key].value}
    assert differing == {(defect, "pro") for defect in ("bright", "dark", "all")}
    assert facts(sampled["all", "pro"])["pro_thresholds"] == 7
    assert "pro_thresholds" not in facts(exact["all", "pro"])


def test_maps_that_are_no_numbers_are_an_error_not_a_row(folders, tmp_path, monkeypatch):
    maps = localization.anomaly_maps
    monkeypatch.setattr(localization, "anomaly_maps", lambda *a: maps(*a) * np.nan)
    with pytest.raises(UserError, match="the metrics are not defined, scores are not finite"):
        run(folders, tmp_path)
    assert not (tmp_path / "run/out/scores.csv").exists()


UNSEEN = {"checkpoints", "seeds", "optim", "networks", "weights"}
"""Settings that are a row's other columns, or facts of another name, which the tests of each
detector read."""
SPEED = {"save_every_s", "log_every_s"}


def changed(section):
    """Copies with one value changed each; what a protocol never shows is left out."""
    for name in set(type(section).model_fields) - UNSEEN - SPEED:
        value = "full_value" if name == "ground_truth" else "other"
        value = "resnet50" if name == "network" else value
        yield name, section.model_copy(update={name: value})
    for name in set(type(section.optim).model_fields) - SPEED - {"validate_every"}:
        optim = section.optim.model_copy(update={name: 7})
        yield f"optim.{name}", section.model_copy(update={"optim": optim})


def test_whatever_changes_a_number_changes_the_protocol(folders, tmp_path):
    paper, here = load(ROOT / "params.yaml").detect, job(folders, tmp_path)
    kinds = (
        ("localization", Localization),
        ("segmentation", lambda *given: Segmentation(*given, "unet")),
        ("classification", Classification),
    )
    for key, kind in kinds:
        section = getattr(paper, key)
        values = {f"detect.{key}": section.model_dump(mode="json"), "run.seed": 0}
        detector = kind(here, Slice(values))
        usual = detector.protocol("last")
        assert usual != detector.protocol("best_on_test"), key
        for name, detector.section in changed(section):
            if name == "network":  # which is chosen when a detector is made
                detector.backbone = detector.section.network
            assert detector.protocol("last") != usual, f"{key}.{name}"
        detector = kind(here, Slice(values))
        (folders[1] / "manifest.json").write_text('{"settings": "20 steps"}')
        assert detector.protocol("last") == usual.having(pairs="20 steps")
        (folders[1] / "manifest.json").unlink()
