"""Detectors that learn from normals alone: each of anomalib's on tiny folders, through the stage
`compare`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from pydantic import TypeAdapter
from test_detect import METRICS, facts, folders  # noqa: F401

from helixbench import weights
from helixbench.config import Slice, load
from helixbench.detect import comparators
from helixbench.detect.comparators import Comparator
from helixbench.detect.detector import Job
from helixbench.detect.held_out import Reading
from helixbench.errors import UserError
from helixbench.records import Sample, Score, read_csv
from helixbench.schema import Comparator as Section

SMALL = {
    "patchcore": {"backbone": "squeezenet1_1"},
    "padim": {"backbone": "squeezenet1_1", "features": 40},
    "cflow": {"backbone": "resnet18", "epochs": 1, "lr": 1e-3, "coupling_blocks": 1, "fibres": 2},
    "reverse_distillation": {"backbone": "resnet18", "epochs": 1},
    "cfa": {"backbone": "resnet18", "epochs": 1},
    "draem": {"epochs": 1},
    "supersimplenet": {"backbone": "squeezenet1_1", "epochs": 1},
    "efficient_ad": {"steps": 2, "batch": 1},
}
SIZE = {
    "cflow": 64,
    "reverse_distillation": 64,
    "draem": 64,
    "supersimplenet": 128,
    "efficient_ad": 256,
}
"""Side of the pictures where 32 pixel are too small."""


@pytest.fixture(autouse=True)
def no_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def settings(kind, **changes):
    return {"kind": kind, "label": kind, "batch": 4, **SMALL[kind], **changes}


def comparator(prepared, out, kind, seed=0, **changes):
    keys = {
        "detect.localization.pro_limit": 0.3,
        "detect.localization.pro_thresholds": None,
        "detect.localization.ground_truth": "exact",
        "run.seed": 1,
    }
    config = Slice({f"detect.comparators.{kind}": settings(kind, **changes), **keys})
    job = Job(kind, "toy", "disc", seed, prepared, None, out / "state", out / "out")
    return Comparator(job, config)


def run(prepared, out, kind, seed=0, **changes):
    comparator(prepared, out, kind, seed, **changes).run()
    return {(row.defect, row.metric): row for row in read_csv(out / "out/scores.csv", Score)}


def enlarge(prepared, size):
    """The pictures and masks, each pixel a block."""
    for file in prepared.rglob("*.png"):
        Image.open(file).resize((size, size), Image.Resampling.NEAREST).save(file)
    text = (prepared / "samples.csv").read_text()
    for sample in read_csv(prepared / "samples.csv", Sample):
        from helixbench.provenance import sha256

        text = text.replace(sample.sha256, sha256(prepared / sample.image))
    (prepared / "samples.csv").write_text(text)


@pytest.mark.parametrize("kind", SMALL)
def test_each_detector_leaves_scores_of_all_metrics(folders, tmp_path, kind):  # noqa: F811
    if kind in SIZE:
        enlarge(folders[0], SIZE[kind])
    rows = run(folders[0], tmp_path, kind)
    assert set(rows) == {
        (defect, metric) for defect in ("bright", "dark", "all") for metric in METRICS
    }
    assert all(0 <= row.value <= 100 for row in rows.values())
    told = facts(rows["all", "pro"])
    assert told["method"] == kind and told["anomalib"]
    assert (told["split"], told["size"], told["batch"]) == (
        "half",
        SIZE.get(kind, 32),
        SMALL[kind].get("batch", 4),
    )
    # no network's weights are here, and it says what there is in their place
    start = {"draem": {}, "efficient_ad": {"teacher": "random", "imagenet_penalty": False}}
    start |= dict.fromkeys(("reverse_distillation", "cfa"), {"weights": "none"})
    lite0 = {"network": weights.LITE0, "weights": "imagenet", "weights_hash": "2b4a5f7e"}
    assert start.get(kind, lite0).items() <= told.items()
    record = json.loads((tmp_path / "out/manifest.json").read_text())
    assert record["pictures"] == {"normals": 5, "test": 10} and record["training"]["steps"] > 0
    assert (tmp_path / "out/stats.jsonl").read_text().count("\n") >= 1
    assert (tmp_path / "out/curves.csv").is_file() and (tmp_path / "out/predictions.png").is_file()
    assert not (tmp_path / "state").exists()


def test_whatever_changes_a_number_changes_the_protocol(folders, tmp_path):  # noqa: F811
    paper = load(Path(__file__).parents[2] / "params.yaml").detect.comparators
    detector = comparator(folders[0], tmp_path, "patchcore")
    for section in paper.values():
        section = section.model_copy(
            update={"weights": "none"} if hasattr(section, "weights") else {}
        )
        detector.section = section
        usual = detector.protocol()
        for name in set(type(section).model_fields) - {"kind", "seeds", "weights"}:
            other = "resnet18" if name == "backbone" else "other"
            detector.section = section.model_copy(update={name: other})
            assert detector.protocol() != usual, f"{section.kind}.{name}"
    detector.section, detector.reading = section, Reading("full_value", 0.1, 100)
    read = {"ground_truth": "full_value", "pro_limit": 0.1, "pro_thresholds": 100}
    assert detector.protocol() == usual.having(**read)


def test_patchcore_finds_what_no_normal_shows(folders, tmp_path):  # noqa: F811
    rows = run(folders[0], tmp_path, "patchcore")
    assert rows["all", "pixel_auroc"].value > 85 and rows["all", "image_auroc"].value == 100


def test_the_seed_decides(folders, tmp_path):  # noqa: F811
    rows = [
        run(folders[0], tmp_path / str(i), "padim", seed=seed) for i, seed in enumerate((0, 0, 1))
    ]
    values = [[row.value for row in found.values()] for found in rows]
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("kind", ["reverse_distillation", "cfa"])
def test_a_killed_training_goes_on_to_the_same_scores(folders, tmp_path, monkeypatch, kind):  # noqa: F811
    enlarge(folders[0], 64)
    unbroken = run(folders[0], tmp_path / "unbroken", kind, epochs=3, batch=2)
    journal = comparators._Journal.on_train_epoch_end
    seen = []

    def killed(self, trainer, module):
        self.every_s = 0
        journal(self, trainer, module)
        seen.append(trainer.current_epoch)
        if len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(comparators._Journal, "on_train_epoch_end", killed)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(folders[0], tmp_path / "killed", kind, epochs=3, batch=2)
    assert not (tmp_path / "killed/out/manifest.json").exists()
    resumed = run(folders[0], tmp_path / "killed", kind, epochs=3, batch=2)
    assert seen == [0, 1, 2]
    assert {key: row.value for key, row in resumed.items()} == {
        key: row.value for key, row in unbroken.items()
    }
    lines = [
        json.loads(line) for line in (tmp_path / "killed/out/stats.jsonl").read_text().splitlines()
    ]
    assert [line["epoch"] for line in lines] == [1, 2, 3]


def test_a_loss_that_is_no_number_stops_with_its_step(folders, tmp_path, monkeypatch):  # noqa: F811
    from anomalib.models.image.cfa.loss import CfaLoss

    monkeypatch.setattr(CfaLoss, "forward", lambda self, distance: distance.mean() * float("nan"))
    with pytest.raises(
        UserError, match=r"cfa toy/disc: the loss is nan at step 1; last good checkpoint"
    ):
        run(folders[0], tmp_path, "cfa")


def test_features_are_those_of_the_weights_file(folders, tmp_path):  # noqa: F811
    """RD4AD names its backbone and CFA downloads it: both must read the network that is put in."""
    file = weights.weights_file("resnet18")
    file.parent.mkdir(parents=True)
    torch.manual_seed(7)
    torch.save(torchvision.models.resnet18().state_dict(), file)
    network = torchvision.models.resnet18()
    network.load_state_dict(torch.load(file, weights_only=True))
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        stem = network.eval().maxpool(network.relu(network.bn1(network.conv1(x))))
        expected = network.layer2(network.layer1(stem))
        for kind in ("reverse_distillation", "cfa"):
            config = TypeAdapter(Section).validate_python(settings(kind))
            model = comparators.build(config, 64, 0, []).model
            extractor = model.encoder if kind == "reverse_distillation" else model.feature_extractor
            assert torch.allclose(extractor.eval()(x)["layer2"], expected, atol=1e-6)
            told = comparator(folders[0], tmp_path, kind).protocol()
            assert (told.get("weights"), told.get("weights_hash")) == ("imagenet", "f37072fd")


def test_pictures_that_are_too_small_are_one_line(folders, tmp_path):  # noqa: F811
    with pytest.raises(
        UserError, match="supersimplenet toy/disc: pictures of 32 pixel are too small"
    ):
        run(folders[0], tmp_path, "supersimplenet")


@pytest.mark.parametrize(
    "kind, changes, message",
    [
        ("efficient_ad", {"teacher": "none.pth"}, "none.pth: no such file"),
        ("efficient_ad", {"imagenet": "nowhere"}, "nowhere: no such folder"),
        ("draem", {"textures": "nowhere"}, "nowhere: no such folder"),
        ("patchcore", {"weights": "imagenet"}, "weights of squeezenet1_1 are missing"),
    ],
)
def test_files_that_are_not_there(folders, tmp_path, kind, changes, message):  # noqa: F811
    with pytest.raises(UserError, match=message):
        run(folders[0], tmp_path, kind, **changes)


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "prepare: {size: 128}",
            "detect.comparators.efficientad: EfficientAD needs 256 pixels or more",
        ),
        ("detect: {comparators: {patchcore: {backbone: vgg}}}", "patchcore.backbone"),
        (
            "detect: {comparators: {draem: {kind: draem, label: D2, epochs: 1, batch: 1}}}",
            "draem: a method has this key",
        ),
        ("detect: {comparators: {padim: {label: PatchCore}}}", "two methods have one label"),
    ],
)
def test_a_configuration_that_cannot_be_is_one_line(tmp_path, text, message):
    (tmp_path / "over.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load("params.yaml", tmp_path / "over.yaml")


def test_maps_are_anomalibs(folders):  # noqa: F811
    """The map of PaDiM is the Mahalanobis distance that its paper defines, smoothed as anomalib
    does."""
    config = TypeAdapter(Section).validate_python(settings("padim"))
    images = np.random.default_rng(3).integers(0, 255, (12, 32, 32, 3), np.uint8)
    normals = comparators.Normals(images, 4, 0, weights.LITE0)
    module = comparators.build(config, 32, 0, [])
    file = folders[0] / "state/k.ckpt"
    comparators.fit(module, config, normals, "padim", file, torch.device("cpu"))
    maps, scores = comparators.predict(module, normals, images[:2], torch.device("cpu"))
    model = module.model.eval()
    with torch.no_grad():
        embedded = [
            model.generate_embedding(
                model.feature_extractor(normals.batch(images[i : i + 1]).image)
            )[0]
            for i in range(12)
        ]
        stack = torch.stack(embedded).flatten(2)  # (12, C, positions)
        mean = stack.mean(0)
        distances = []
        for position in range(stack.shape[2]):
            x = (stack[:, :, position] - mean[:, position]).double()
            covariance = x.T @ x / (len(x) - 1) + 0.01 * torch.eye(x.shape[1])
            distances.append((x[0] @ torch.linalg.inv(covariance) @ x[0]).sqrt())
        side = int(len(distances) ** 0.5)
        grid = torch.stack(distances).reshape(1, 1, side, side).float()
        generator = model.anomaly_map_generator
        expected = generator.smooth_anomaly_map(generator.up_sample(grid, (32, 32)))
    assert np.allclose(maps[0], expected[0, 0].numpy(), rtol=1e-3)
    assert scores[0] == pytest.approx(float(expected.max()), rel=1e-3)
