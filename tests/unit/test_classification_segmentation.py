"""Classification and segmentation on tiny folders."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from test_detect import SIZE, facts, folders, job  # noqa: F401
from torchmetrics.functional.classification import binary_jaccard_index, multiclass_accuracy

from helixbench import weights
from helixbench.config import Slice
from helixbench.detect import localization
from helixbench.detect.classification import Classification
from helixbench.detect.segmentation import Segmentation
from helixbench.engine import lite0
from helixbench.errors import UserError
from helixbench.metrics import confusion_metrics
from helixbench.protocol import Protocol
from helixbench.records import Pair, Sample, Score, read_csv, write_csv
from helixbench.schema import Segmentation as Section

OPTIM = {"steps": 40, "batch": 4, "lr": 1e-3, "precision": "fp32"}


def classifier(folders, out, **changes):  # noqa: F811
    values = {"network": "resnet18", "weights": "none", "optim": OPTIM, **changes}
    config = Slice({"detect.classification": values, "run.seed": 1})
    return Classification(job(folders, out), config)


def classify(folders, out, **changes):  # noqa: F811
    classifier(folders, out, **changes).run()
    return {row.defect: row for row in read_csv(out / "out/scores.csv", Score)}


def segment(folders, out, architecture="unet", **changes):  # noqa: F811
    encoders = {"unet": "resnet18", "segformer": "mit_b0", "deeplabv3plus": "resnet18"}
    values = {"networks": {architecture: encoders[architecture]}, "optim": OPTIM, **changes}
    config = Slice({"detect.segmentation": values, "run.seed": 1})
    Segmentation(job(folders, out), config, architecture).run()
    return {(row.defect, row.metric): row for row in read_csv(out / "out/scores.csv", Score)}


def test_a_classifier_learns_the_types(folders, tmp_path):  # noqa: F811
    rows = classify(folders, tmp_path)
    assert set(rows) == {"bright", "dark", "all"}
    assert {row.metric for row in rows.values()} == {"accuracy"}
    assert rows["all"].value == 100 and rows["all"].n == 6 and rows["bright"].n == 3, (
        "bright and dark squares are easily told apart"
    )
    assert Protocol.parse(rows["all"].protocol) == Protocol(
        "classification",
        {
            **{"network": "resnet18", "weights": "none", "split": "half", "size": SIZE},
            **{"gated": True, "checkpoint": "last", "steps_per_defect": 40, "batch": 4},
            **{"lr": 0.001, "precision": "fp32"},
        },
    )
    record = json.loads((tmp_path / "out/manifest.json").read_text())
    assert (
        record["pairs"]["dark"] == {"used": 3, "left_out_by_gate": 1}
        and record["detector"] == "classification"
    )
    assert record["training"]["steps"] == 2 * OPTIM["steps"], "so many for each type"
    assert not (tmp_path / "state").exists()
    again = classify(folders, tmp_path / "again")
    assert {k: r.value for k, r in again.items()} == {k: r.value for k, r in rows.items()}


def test_a_type_that_no_pair_shows_counts_as_wrong(folders, tmp_path):  # noqa: F811
    rows = read_csv(folders[1] / "manifest.csv", Pair)
    write_csv(folders[1] / "manifest.csv", [row for row in rows if row.defect == "dark"], Pair)
    found = classify(folders, tmp_path)
    assert (found["dark"].value, found["bright"].value, found["all"].value) == (100, 0, 50)


def test_nothing_to_learn_from_is_an_error(folders, tmp_path):  # noqa: F811
    rows = read_csv(folders[1] / "manifest.csv", Pair)
    write_csv(
        folders[1] / "manifest.csv", [dataclasses.replace(row, gate="empty") for row in rows], Pair
    )
    with pytest.raises(UserError, match="no pair passed the mask gate"):
        classify(folders, tmp_path)
    samples = read_csv(folders[0] / "samples.csv", Sample)
    write_csv(folders[0] / "samples.csv", [s for s in samples if s.defect == "good"], Sample)
    with pytest.raises(UserError, match="no defective picture has role test"):
        classify(folders, tmp_path)


def test_published_weights_are_the_start_where_they_are(folders, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert weights.start("resnet18", "auto") == ("efficientnet_lite0", "imagenet")
    detector = classifier(folders, tmp_path, weights="auto")
    model = detector.build()
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 2)
    assert torch.equal(model[1].bn1.weight, lite0.network().bn1.weight)
    told = detector.protocol("last")
    assert (told.get("network"), told.get("weights")) == ("efficientnet_lite0", "imagenet")
    with pytest.raises(
        UserError, match="resnet18.* missing; run .helixbench fetch weights resnet18"
    ):
        weights.start("resnet18", "imagenet")
    torch.manual_seed(5)
    published = torchvision.models.resnet18(weights=None).state_dict()
    file = weights.weights_file("resnet18")
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(published, file)
    detector = classifier(folders, tmp_path, weights="auto")
    model = detector.build()
    assert not isinstance(model[0], torchvision.transforms.Normalize)
    assert torch.equal(model[1].layer2[0].conv1.weight, published["layer2.0.conv1.weight"])
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 2)
    assert detector.protocol("last").get("weights") == "imagenet"


def test_degenerate_masks_and_outputs_are_one_line(folders, tmp_path, monkeypatch):  # noqa: F811
    maps = localization.anomaly_maps
    with monkeypatch.context() as patch:
        patch.setattr(localization, "anomaly_maps", lambda *a: maps(*a) * np.nan)
        with pytest.raises(UserError, match="outputs are not finite"):
            segment(folders, tmp_path / "nan")
    for sample in read_csv(folders[0] / "samples.csv", Sample):
        if sample.mask:
            Image.fromarray(np.full((32, 32), 255, np.uint8)).save(folders[0] / sample.mask)
    with pytest.raises(
        UserError, match="of bright: the metrics are not defined, nothing is labelled normal"
    ):
        segment(folders, tmp_path / "full")


@pytest.mark.parametrize("architecture", ["unet", "segformer", "deeplabv3plus"])
def test_every_segmenter_runs(folders, tmp_path, architecture):  # noqa: F811
    rows = segment(
        folders,
        tmp_path,
        architecture,
        checkpoints=["best_on_test"],
        optim={**OPTIM, "steps": 4, "validate_every": 2},
    )
    metrics = {"miou", "iou", "pixel_accuracy", "class_accuracy"}
    assert set(rows) == {
        (defect, metric) for defect in ("bright", "dark", "all") for metric in metrics
    }
    assert all(0 <= row.value <= 100 for row in rows.values()) and rows["all", "miou"].n == 6
    told = facts(rows["all", "miou"])
    assert (told["network"], told["checkpoint"]) == (architecture, "best_on_test")
    assert told["encoder"] and told["defective_only"]


def test_segmenters_learn_by_plain_cross_entropy(folders, tmp_path, monkeypatch):  # noqa: F811
    seen, call = [], localization.focal_loss
    monkeypatch.setattr(
        localization, "focal_loss", lambda *given: seen.append(given[2:]) or call(*given)
    )
    segment(folders, tmp_path, optim={**OPTIM, "steps": 1})
    assert seen == [(0.0, 0.0)], "gamma and smoothing"


def test_one_type_has_no_accuracy(folders, tmp_path, caplog):  # noqa: F811
    """It would be 100 by construction, and enter averages."""
    for folder, name, row in (
        (folders[0], "samples.csv", Sample),
        (folders[1], "manifest.csv", Pair),
    ):
        rows = read_csv(folder / name, row)
        write_csv(folder / name, [r for r in rows if r.defect != "dark"], row)
    with caplog.at_level("INFO"):
        assert classify(folders, tmp_path) == {}
    assert "one defect type, bright; no accuracy" in caplog.text


def test_a_segmenter_learns(folders, tmp_path):  # noqa: F811
    rows = segment(folders, tmp_path, optim={**OPTIM, "steps": 80, "lr": 3e-3})
    assert rows["all", "iou"].value > 60 and rows["all", "miou"].value > 75
    assert rows["all", "pixel_accuracy"].value > 95


def test_what_is_not_configured_is_an_error(folders, tmp_path):  # noqa: F811
    config = Slice({"detect.segmentation": None, "detect.classification": None, "run.seed": 0})
    with pytest.raises(UserError, match="detect.segmentation.networks: unet is not there"):
        Segmentation(job(folders, tmp_path), config, "unet")
    with pytest.raises(UserError, match="detect.classification is not used"):
        Classification(job(folders, tmp_path), config)
    with pytest.raises(ValueError, match="no dilated mit_b0"):
        Section(networks={"deeplabv3plus": "mit_b0"}, optim=OPTIM)


@pytest.mark.parametrize("seed", range(4))
def test_confusion_metrics_agree_with_torchmetrics(seed):
    rng = np.random.default_rng(seed)
    predicted, masks = rng.random((3, SIZE, SIZE)) < 0.2, rng.random((3, SIZE, SIZE)) < 0.3
    found = confusion_metrics(predicted, masks)
    x, y = torch.from_numpy(predicted).int(), torch.from_numpy(masks).int()
    iou = [float(binary_jaccard_index(*pair)) for pair in ((x, y), (1 - x, 1 - y))]
    assert found["iou"] == pytest.approx(iou[0], abs=1e-6) and found["miou"] == pytest.approx(
        np.mean(iou), abs=1e-6
    )
    flat = x.flatten(), y.flatten()
    for name, average in (("pixel_accuracy", "micro"), ("class_accuracy", "macro")):
        assert found[name] == pytest.approx(
            float(multiclass_accuracy(*flat, num_classes=2, average=average)), abs=1e-6
        )


def test_confusion_metrics_of_degenerate_cases():
    masks = np.zeros((1, 4, 4), bool)
    with pytest.raises(ValueError, match="nothing is labelled anomalous"):
        confusion_metrics(masks, masks)
    with pytest.raises(ValueError, match="nothing is labelled normal"):
        confusion_metrics(masks, ~masks)
    masks[0, 0] = True
    assert confusion_metrics(masks, masks) == dict.fromkeys(
        ("miou", "iou", "pixel_accuracy", "class_accuracy"), 1.0
    )
    nothing = confusion_metrics(np.zeros_like(masks), masks)
    assert (nothing["iou"], nothing["miou"], nothing["class_accuracy"]) == (0, 0.375, 0.5)
    with pytest.raises(ValueError, match="shape"):
        confusion_metrics(masks[0], masks)
