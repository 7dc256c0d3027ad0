"""Plan, gate, Crop&Paste, foreground, and the stage `generate`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from PIL import Image

from helixbench import schema
from helixbench.config import Slice
from helixbench.diffusion.data import Pictures
from helixbench.errors import UserError
from helixbench.generate import gather, stage
from helixbench.generate.plan import conditions, make_plan
from helixbench.methods.crop_paste.method import CropPasteMethod
from helixbench.pictures.foreground import foreground
from helixbench.pictures.mask_gate import verdict
from helixbench.pictures.transforms import shift, symmetries, transform
from helixbench.provenance import sha256
from helixbench.records import Pair, parse_cells, read_csv
from helixbench.schema import Gate, Generate

ALL = ("hflip", "vflip", "rot90")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    return small.prepared(tmp_path_factory.mktemp("data") / "disc")


@pytest.fixture(scope="module")
def data(prepared) -> Pictures:
    return Pictures.load(prepared)


def generate(**changes) -> Generate:
    values = {
        "pairs": 6,
        "batch": 4,
        "symmetries": ALL,
        "sampling": small.sampling(),
        "gate": Gate(min_area=0.0),
    }
    return Generate(**(values | changes))


def a_slice(method: str, options, section: Generate) -> Slice:
    plain = json.loads(section.model_dump_json())
    return Slice(
        {
            "run.seed": 0,
            "generate": plain,
            f"train.methods.{method}": json.loads(options.model_dump_json()),
        }
    )


def run_crop_paste(prepared: Path, folder: Path, section: Generate, **changes) -> list[Pair]:
    config = a_slice("crop_paste", small.crop_paste(**changes), section)
    stage.run(
        "crop_paste",
        "Data",
        "disc",
        config,
        prepared=prepared,
        model=None,
        state=folder / "state",
        out=folder / "out",
    )
    return read_csv(folder / "out/manifest.csv", Pair)


def test_the_eight_symmetries_are_different_and_keep_the_shape():
    picture = np.arange(16).reshape(4, 4)
    images = {transform(picture, name).tobytes() for name in symmetries(ALL)}
    assert len(images) == 8 and symmetries(()) == [""]


def test_shift_loses_what_leaves():
    picture = np.arange(9).reshape(3, 3)
    assert shift(picture, 1, -1, 9).tolist() == [[9, 9, 9], [1, 2, 9], [4, 5, 9]]


def test_only_the_generator_half_and_normals_are_loaded(data):
    assert {s.role for s in data.samples} == {"normal", "generator"}


def test_plan_is_a_function_of_seed_and_index_alone(data):
    short, long = make_plan(data, generate(pairs=3), 0), make_plan(data, generate(pairs=9), 0)
    by_index = {(p.defect, p.index): p for p in long}
    assert all(by_index[p.defect, p.index] == p for p in short)
    assert make_plan(data, generate(pairs=3), 1) != short


def test_planned_raw_masks_are_the_cells_of_the_moved_masks(data):
    plans = make_plan(data, generate(pairs=20, max_shift=2), 0)
    given = conditions(data, plans, "detailed")
    assert len({(p.symmetry, p.shift_y, p.shift_x) for p in plans}) > 10
    for i, plan in enumerate(plans):
        assert parse_cells(plan.raw_mask)[1], "the move lost the defect"
        assert (given.donor_mask[i] <= given.raw_mask[i]).all()
        # nothing of the defect leaves the picture but for the rounding of cells to pixels
        donor = data.masks[data.index[plan.donor]].sum()
        assert given.donor_mask[i].sum() >= 0.8 * donor
    assert torch.equal(given.control, given.donor_mask)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 0, 0), "empty"),
        ((5, 6, 5, 6), "small"),
        ((4, 12, 4, 12), "ok"),
        ((1, 31, 1, 31), "large"),
        ((0, 3, 4, 24), "border"),
        ((0, 3, 4, 12), "ok"),
    ],
)
def test_gate(box, expected):
    mask = np.zeros((32, 32), bool)
    mask[box[0] : box[1], box[2] : box[3]] = True
    assert verdict(mask, Gate(min_area=0.002, max_area=0.5, max_border=1 / 3)) == expected


def test_foreground_finds_the_object_and_gives_up_on_textures():
    y, x = np.ogrid[:64, :64]
    disc = (y - 30) ** 2 + (x - 34) ** 2 < 20**2
    rng = np.random.default_rng(0)
    picture = np.where(disc[..., None], 60, 230) + rng.normal(0, 3, (64, 64, 3))
    found = foreground(picture.clip(0, 255).astype(np.uint8))
    assert (found & disc).sum() / (found | disc).sum() > 0.95
    assert foreground(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).all()


def test_crop_paste_changes_the_mask_and_nothing_far_from_it(data):
    plans = make_plan(data, generate(pairs=8), 0)
    given = conditions(data, plans)
    generators = [torch.Generator().manual_seed(plan.seed) for plan in plans]
    images, masks = CropPasteMethod(small.crop_paste(feather=1.0)).sample(given, generators)
    change = (images - given.background).abs().amax(1)
    for i, plan in enumerate(plans):
        mask = masks[i, 0] > 0.5
        far = torch.nn.functional.max_pool2d(masks[i : i + 1], 13, 1, 6)[0, 0] == 0
        assert mask.any() and change[i][far].max() == 0
        bright = images[i].mean(0)[mask].median()
        assert bright > 0.8 if plan.defect == "hole" else bright < 0.2, (
            "the mask is beside the defect"
        )


def test_crop_paste_pair_does_not_depend_on_its_batch(data):
    plans = make_plan(data, generate(pairs=5), 0)
    method = CropPasteMethod(small.crop_paste())

    def sample(chosen):
        return method.sample(
            conditions(data, chosen), [torch.Generator().manual_seed(p.seed) for p in chosen]
        )

    together, alone = sample(plans), [sample([plan]) for plan in plans]
    for i, (image, mask) in enumerate(alone):
        assert torch.equal(together[0][i], image[0]) and torch.equal(together[1][i], mask[0])


def test_stage_writes_the_mvtec_layout_and_a_true_manifest(prepared, tmp_path):
    pairs = run_crop_paste(prepared, tmp_path, generate())
    assert len(pairs) == 12
    for pair in pairs:
        image, mask = (Image.open(tmp_path / "out" / name) for name in (pair.image, pair.mask))
        assert image.size == mask.size == (small.SIZE, small.SIZE) and image.mode == "RGB"
        assert set(np.unique(np.asarray(mask))) <= {0, 255}
        assert pair.image == f"disc/test/{pair.defect}/{pair.index:03d}.png"
        assert (
            sha256(tmp_path / "out" / pair.image) == pair.sha256
            and sha256(tmp_path / "out" / pair.mask) == pair.mask_sha256
        )
        assert abs((np.asarray(mask) > 0).mean() - pair.mask_area) < 1e-5


def test_batch_size_changes_no_pair(prepared, tmp_path):
    one = run_crop_paste(prepared, tmp_path / "a", generate(batch=1))
    many = run_crop_paste(prepared, tmp_path / "b", generate(batch=5))
    assert one == many


def test_failing_masks_are_redrawn_counted_and_flagged(prepared, tmp_path):
    pairs = run_crop_paste(
        prepared, tmp_path, generate(gate=Gate(limits="fixed", min_area=0.2, redraws=2))
    )
    assert {(pair.gate, pair.redraws) for pair in pairs} == {("small", 2)}
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["gate"] == {"small": 12} and manifest["redraws"] == 24
    assert manifest["takes_raw_mask"] is False, (
        "a pasted defect is where it was, not where it is asked for"
    )


def test_a_killed_run_goes_on_and_ends_the_same(prepared, tmp_path, monkeypatch):
    expected = run_crop_paste(prepared, tmp_path / "whole", generate(batch=2))
    real, calls = stage._sample, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(stage, "_sample", dies)
    with pytest.raises(KeyboardInterrupt):
        run_crop_paste(prepared, tmp_path / "cut", generate(batch=2))
    assert not (tmp_path / "cut/out/manifest.csv").exists()
    blocks = sorted((tmp_path / "cut/state").glob("block*.json"))
    assert len(blocks) == 3
    blocks[1].write_text(blocks[1].read_text()[:100])  # a disk that lost the end of it
    (tmp_path / "cut/out/disc/test/hole/000.png").write_bytes(b"damaged")
    calls[:] = [1] * 4
    monkeypatch.setattr(stage, "_sample", lambda *arguments: (calls.append(1), real(*arguments))[1])
    assert run_crop_paste(prepared, tmp_path / "cut", generate(batch=2)) == expected
    assert len(calls) - 4 == 6 - 3 + 2
    assert json.loads((tmp_path / "cut/out/manifest.json").read_text())["drawn"] == 12
    assert not (tmp_path / "cut/state").exists()


def test_a_picture_altered_before_the_manifest_is_noticed(prepared, tmp_path):
    config = a_slice("crop_paste", small.crop_paste(), generate())
    folders = {
        "state": tmp_path / "state",
        "out": tmp_path / "out",
        "record": tmp_path / "pairs.jsonl",
    }
    stage.run_part("crop_paste", config, prepared=prepared, model=None, **folders)
    (tmp_path / "out/disc/ground_truth/hole/001_mask.png").unlink()
    with pytest.raises(UserError, match="hole/001_mask.png: missing or changed"):
        gather.run(
            "crop_paste",
            "disc",
            config,
            records=[folders["record"]],
            state=folders["state"],
            out=folders["out"],
        )
    assert not (tmp_path / "out/manifest.csv").exists() and folders["state"].exists()


def test_an_incomplete_record_makes_no_manifest(prepared, tmp_path):
    config = a_slice("crop_paste", small.crop_paste(), generate())
    folders = {
        "state": tmp_path / "state",
        "out": tmp_path / "out",
        "record": tmp_path / "pairs.jsonl",
    }
    stage.run_part("crop_paste", config, prepared=prepared, model=None, **folders, part=(2, 2))
    with pytest.raises(UserError, match="not every block of the plan once"):
        gather.run(
            "crop_paste",
            "disc",
            config,
            records=[folders["record"]],
            state=folders["state"],
            out=folders["out"],
        )


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0", ""])
def test_a_part_is_k_of_n(text):
    with pytest.raises(UserError, match="write K/N"):
        stage.parse_part(text)


def test_pictures_of_another_configuration_do_not_stay(prepared, tmp_path):
    run_crop_paste(prepared, tmp_path, generate(pairs=8))
    pairs = run_crop_paste(prepared, tmp_path, generate(pairs=3))
    left = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png")}
    assert left == {name for pair in pairs for name in (pair.image, pair.mask)}


def tree(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256(p) for p in folder.rglob("*") if p.is_file()}


def test_a_folder_of_somebody_else_is_left_alone(prepared, tmp_path):
    """A data set of one's own as `--out`: its pictures have the names of the pairs."""
    for name in ("disc/train/good/000.png", "disc/test/hole/000.png", "notes.txt"):
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_bytes(b"mine")
    (tmp_path / "out/manifest.json").write_text('{"name": "a manifest of another kind"}')
    before = tree(tmp_path / "out")
    with pytest.raises(UserError, match="out: holds files that helixbench did not write"):
        run_crop_paste(prepared, tmp_path, generate())
    assert tree(tmp_path / "out") == before


def test_only_recorded_pictures_are_removed(prepared, tmp_path):
    run_crop_paste(prepared, tmp_path, generate())
    out = tmp_path / "out"
    own = {out / "disc/test/hole/my own.png", out / "disc/test/mine/000.png"}
    for file in own:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"mine")
    pairs = run_crop_paste(prepared, tmp_path, generate(pairs=3))
    named = {out / name for pair in pairs for name in (pair.image, pair.mask)}
    assert set(out.rglob("*.png")) == named | own


def test_a_method_that_learns_needs_its_model(prepared, tmp_path):
    config = a_slice("dhdiff", small.dhdiff(), generate())
    with pytest.raises(UserError, match="--model"):
        stage.run(
            "dhdiff",
            "Data",
            "disc",
            config,
            prepared=prepared,
            model=None,
            state=tmp_path / "s",
            out=tmp_path / "o",
        )


class White:
    """A method whose pairs are white, with a square as their mask; of the second, an empty one."""

    draws_into_background = True

    def sample(self, given, generators):
        masks = torch.zeros(given.background[:, :1].shape)
        masks[:1, :, 8:12, 8:12] = 1
        return torch.ones(given.background.shape), masks

    def describe(self):
        return "white"


def test_a_pair_is_laid_into_its_normal(data):
    section = generate(composite=0.125, pairs=1)  # 4 of 32 pixels
    asked = make_plan(data, section, 0)[:2]
    images, masks = stage._sample(White(), data, asked, 0, section)
    normals = conditions(data, asked, "none").background
    normals = (normals * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    mask = masks[0]
    assert (images[0][mask] == 255).all()
    beside = images[0][10, 13].astype(float)  # two pixels away: half of each
    np.testing.assert_allclose(beside, (255 + normals[0][10, 13].astype(float)) / 2, atol=1)
    far = np.ones_like(mask)
    far[4:16, 4:16] = False
    np.testing.assert_array_equal(images[0][far], normals[0][far])
    np.testing.assert_array_equal(images[1], normals[1])
    assert stage._settings(White(), section).startswith("white, the normal from 0.125")

    plain = stage._sample(White(), data, asked, 0, generate(pairs=1))[0]
    assert (plain == 255).all() and stage._settings(White(), generate()) == "white"
    other = type("Other", (White,), {"draws_into_background": False})()
    assert (stage._sample(other, data, asked, 0, section)[0] == 255).all()
    assert stage._settings(other, section) == "white"


def test_slices_are_the_schema_s_types():
    config = a_slice("dhdiff", small.dhdiff(reference="background"), generate())
    assert (
        isinstance(config["generate"], schema.Generate)
        and config["train.methods.dhdiff"].reference == "background"
    )
