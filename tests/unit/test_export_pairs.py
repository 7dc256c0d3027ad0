"""Pairs for anomalib and as COCO: read by anomalib itself, and by pycocotools where it is there."""

import csv
import json
import shutil
import warnings

import numpy as np
import pytest
import small
from PIL import Image

from helixbench.cli.tools import export_pairs
from helixbench.config import Slice
from helixbench.errors import UserError
from helixbench.generate import export
from helixbench.generate import stage as generate_stage
from helixbench.pictures.raw import read_mask, read_rgb
from helixbench.records import Pair, read_csv, write_csv

SIZE = 64
TEXT = {"image_path": object, "mask_path": object}
"""anomalib 2.7 writes paths into these columns, which the text columns of pandas 3 refuse."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A prepared folder, and Crop&Paste's pairs, of which one did not pass the gate."""
    folder = tmp_path_factory.mktemp("run")
    data = small.prepared(folder / "disc", size=SIZE)
    values = {"run.seed": 0, "generate": {"pairs": 3, "gate": {"min_area": 0.0}}}
    values["train.methods.crop_paste"] = {"kind": "crop_paste"}
    one = ("crop_paste", "Data", "disc", Slice(values))
    state = folder / "state"
    generate_stage.run(*one, prepared=data, model=None, state=state, out=folder / "pairs")
    pairs = read_csv(folder / "pairs/manifest.csv", Pair)
    pairs[0] = Pair(**{**vars(pairs[0]), "gate": "border"})
    write_csv(folder / "pairs/manifest.csv", pairs, Pair)
    return folder


def table(file):
    with open(file, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_folders_and_tables_that_anomalib_reads(run, tmp_path):
    out = tmp_path / "out"
    export_pairs(run / "disc", run / "pairs", out, "anomalib")
    assert len(list(out.glob("train/good/*.png"))) == 4
    assert len(list(out.glob("pairs/*/*.png"))) == len(list(out.glob("pairs_masks/*/*.png"))) == 5
    first = next(p for p in read_csv(run / "pairs/manifest.csv", Pair) if p.gate == "ok")
    copied = out / f"pairs/{first.defect}/{first.index:05d}.png"
    assert copied.read_bytes() == (run / "pairs" / first.image).read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from anomalib.data import Folder, Tabular
    for name, anomalous, normal in (("real", 8, 4), ("pairs", 5, 0)):
        file = out / f"{name}.csv"
        options = {"num_workers": 0, "val_split_mode": "none", "pd_kwargs": {"dtype": TEXT}}
        data = Tabular.from_file("disc", file, root=out, **options)
        data.setup()
        assert len(data.train_data) == 4 and not data.train_data.has_anomalous
        labels = list(data.test_data.samples.label_index)
        assert (labels.count(1), labels.count(0)) == (anomalous, normal)
        item = data.test_data[labels.index(1)]
        mask = read_mask(item.mask_path)
        assert np.array_equal(np.asarray(item.gt_mask, bool), mask) and mask.any()
    folders = {"abnormal_dir": "test/hole", "mask_dir": "ground_truth/hole"}
    data = Folder("disc", "train/good", out, normal_test_dir="test/good", num_workers=0, **folders)
    data.setup()
    assert len(data.train_data) == 4 and data.test_data.has_anomalous


def test_coco_that_pycocotools_reads(run, tmp_path):
    tools = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    out = tmp_path / "out"
    export_pairs(run / "disc", run / "pairs", out, "coco")
    for part, count in (("train", 5), ("test", 8)):
        coco = tools.COCO(str(out / f"{part}.json"))
        shown = [image for image in coco.dataset["images"] if coco.getAnnIds(image["id"])]
        assert len(shown) == count and len(coco.dataset["images"]) == count + 4
        for one in coco.loadAnns(coco.getAnnIds()):
            assert coco.annToMask(one).sum() == one["area"] > 0
            ys, xs = np.nonzero(coco.annToMask(one))
            x, y, width, height = one["bbox"]
            assert (xs.min(), ys.min()) == (x, y)
            assert (xs.max() - xs.min() + 1, ys.max() - ys.min() + 1) == (width, height)


def test_the_run_lengths_are_the_masks(run, tmp_path):
    """Decoded here, column by column, so that it is seen where pycocotools is not installed."""
    out = tmp_path / "out"
    export_pairs(run / "disc", run / "pairs", out, "coco")
    content = json.loads((out / "train.json").read_text())
    pairs = [p for p in read_csv(run / "pairs/manifest.csv", Pair) if p.gate == "ok"]
    masks = {
        f"train/{p.defect}/{p.index:05d}.png": read_mask(run / "pairs" / p.mask) for p in pairs
    }
    names = {category["id"]: category["name"] for category in content["categories"]}
    drawn = {name: np.zeros((SIZE, SIZE), bool) for name in masks}
    files = {image["id"]: image["file_name"] for image in content["images"]}
    for one in content["annotations"]:
        counts = one["segmentation"]["counts"]
        flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        drawn[files[one["image_id"]]] |= flat.reshape((SIZE, SIZE), order="F")
        assert f"/{names[one['category_id']]}/" in files[one["image_id"]]
    assert all(np.array_equal(drawn[name], mask) for name, mask in masks.items())
    whole = np.ones((3, 4), bool)
    assert export._object(whole)["segmentation"] == {"counts": [0, 12], "size": [3, 4]}


def test_what_cannot_be_exported_is_one_line(run, tmp_path):
    out, pairs = tmp_path / "out", tmp_path / "pairs"
    with pytest.raises(UserError, match="there are anomalib and coco"):
        export_pairs(run / "disc", run / "pairs", out, "yolo")
    shutil.copytree(run / "pairs", pairs)
    rows = read_csv(pairs / "manifest.csv", Pair)
    write_csv(pairs / "manifest.csv", [Pair(**{**vars(p), "category": "x"}) for p in rows], Pair)
    with pytest.raises(UserError, match="pairs of Data/x, but .*disc is Data/disc"):
        export_pairs(run / "disc", pairs, out, "coco")
    write_csv(pairs / "manifest.csv", [Pair(**{**vars(p), "gate": "small"}) for p in rows], Pair)
    with pytest.raises(UserError, match="no pair passed the mask gate"):
        export_pairs(run / "disc", pairs, out, "coco")
    write_csv(pairs / "manifest.csv", rows, Pair)
    Image.new("L", (SIZE, SIZE), 255).save(pairs / rows[1].mask)
    with pytest.raises(UserError, match="missing or altered"):
        export_pairs(run / "disc", pairs, out, "anomalib")
    assert not out.exists()


def test_anomalib_trains_on_the_pairs(run, tmp_path, monkeypatch):
    """SuperSimpleNet sees their labels and masks; DRAEM gets its defects from them."""
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning.pytorch as pl
        import torch
        from anomalib import models

        from helixbench.anomalib import HelixPairs, PairAugmenter
        from helixbench.detect.anomalib_models import features
        from helixbench.schema import SuperSimpleNet

        pl.seed_everything(0, verbose=False)
        data = HelixPairs(run / "disc", run / "pairs", train_batch_size=2)
        data.setup()
        train, test = data.train_data.samples, data.test_data.samples
        assert list(train.label_index).count(1) == 5 and list(train.label_index).count(0) == 4
        assert {path for path in test.image_path} & {path for path in train.image_path} == set()
        assert sorted(test.label_index) == [0] * 4 + [1] * 8
        item = data.train_data[list(train.label_index).index(1)]
        assert np.array_equal(np.asarray(item.gt_mask, bool), read_mask(item.mask_path))

        bare = dict.fromkeys(("pre_processor", "post_processor", "evaluator", "visualizer"), False)
        options = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "devices": 1}
        options["limit_train_batches"] = 1
        quiet = {"enable_checkpointing": False, "enable_progress_bar": False}
        section = SuperSimpleNet(kind="supersimplenet", backbone="squeezenet1_1", weights="none")
        layers = ["features.4", "features.7"]
        nets = {
            "supersimplenet": models.Supersimplenet(
                backbone=features(section), layers=layers, supervised=True, **bare
            ),
            "draem": models.Draem(tmp_path, **bare),
        }
        augmenter = nets["draem"].augmenter = PairAugmenter(run / "pairs", probability=1.0)
        for network in nets.values():
            network.hparams.clear()
            before = [p.detach().clone() for p in network.parameters()]
            trainer = pl.Trainer(**options, **quiet, enable_model_summary=False)
            trainer.fit(network, datamodule=data)
            after = list(network.parameters())
            assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
            assert all(torch.isfinite(p).all() for p in after)
    grey = torch.full((4, 3, SIZE, SIZE), 0.5)
    changed, masks = augmenter(grey)
    assert masks.shape == (4, 1, SIZE, SIZE) and (masks.sum((1, 2, 3)) > 0).all()
    assert not ((changed != grey).any(1) & (masks[:, 0] == 0)).any()
    pairs = [p for p in read_csv(run / "pairs/manifest.csv", Pair) if p.gate == "ok"]
    files = [(run / "pairs" / p.image, run / "pairs" / p.mask) for p in pairs]
    shown = {tuple(read_rgb(image)[read_mask(mask)].ravel()) for image, mask in files}
    for one, mask in zip(changed, masks, strict=True):
        pixels = (255 * one.permute(1, 2, 0)[mask[0] > 0]).round().byte().numpy()
        assert tuple(pixels.ravel()) in shown
    augmenter.probability = 0.0
    same, nothing = augmenter(grey)
    assert torch.equal(same, grey) and not nothing.any()
