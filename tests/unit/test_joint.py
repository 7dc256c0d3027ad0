"""A base that is trained over many categories: its pictures and words, its training, its folder."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from PIL import Image

from helixbench import provenance
from helixbench.config import Slice
from helixbench.datasets.world.sources import LICENCES
from helixbench.diffusion.base import BaseModel
from helixbench.diffusion.data import Pictures
from helixbench.errors import UserError
from helixbench.methods.method import method_class
from helixbench.schema.joint import Joint
from helixbench.schema.train import EMBEDDED
from helixbench.train import bank as banks
from helixbench.train import joint


def options(**changes) -> Joint:
    values = {
        "size": small.SIZE,
        "drawn": 12,
        "entries": 32,
        "vocabulary": 300,
        "autoencoder": {"latent_channels": 4, "pictures": 12},
        "text_encoder": {"width": 32, "layers": 1, "heads": 2, "max_tokens": 24},
        "unet": {"channels": [16, 16, 32, 32], "head_dim": 8, "prediction": "v_prediction"},
        "optim": small.optim(steps=6, ema=0.5, save_every_s=1e-9, log_every_s=1e-9).model_dump(),
    }
    return Joint.model_validate(values | changes)


def config(**changes) -> Slice:
    values = options(**changes).model_dump(mode="json")
    return Slice({"run.seed": 0, "train.joint": values})


@pytest.fixture(scope="module")
def textures(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("textures"), np.random.default_rng(0)
    for i in range(3):
        noise = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((48, 48)).save(folder / f"{i}.png")
    (folder / "attribution.tsv").write_text("package\tlicence\tauthors\tfile\n")
    return folder


@pytest.fixture(scope="module")
def bank(tmp_path_factory, textures):
    return banks.drawn(tmp_path_factory.mktemp("drawn"), 12, small.SIZE, textures, seed=0)


def test_drawn_pictures_do_not_depend_on_where_the_drawing_was_stopped(
    bank, textures, tmp_path, monkeypatch
):
    monkeypatch.setattr(banks, "_CHUNK", 5)
    (tmp_path / "a").mkdir()
    banks.drawn(tmp_path / "a", 12, small.SIZE, textures, seed=0)
    (tmp_path / "a/words_5.json").unlink()
    np.lib.format.open_memmap(tmp_path / "a/images.npy")[5:10] = 0
    again = banks.drawn(tmp_path / "a", 12, small.SIZE, textures, seed=0)
    for name in banks.ARRAYS:
        np.testing.assert_array_equal(getattr(again, name), getattr(bank, name))
    assert again.things == bank.things and again.defects == bank.defects


def test_another_world_takes_the_place_of_the_one_that_was_drawn(textures, tmp_path):
    first = banks.drawn(tmp_path / "a", 2, small.SIZE, textures, seed=0)
    pictures, identities = np.array(first.images), {first.identity}
    for n, size, photos, seed in ((2, 64, textures, 0), (3, 64, None, 0), (3, 64, None, 1)):
        found = banks.drawn(tmp_path / "a", n, size, photos, seed)
        assert found.images.shape == (n, size, size, 3) and len(found.things) == n
        identities.add(found.identity)
    assert len(identities) == 4
    again = banks.drawn(tmp_path / "a", 2, small.SIZE, textures, seed=0)
    np.testing.assert_array_equal(again.images, pictures)


def test_latents_of_other_values_are_made_again(bank, tmp_path):
    base, file = joint.build(options(), bank, seed=0), tmp_path / "latents.safetensors"
    first, *_ = joint.encoded(bank, base, 8, 0, file, "one")
    kept, *_ = joint.encoded(bank, base, 8, 1, file, "one")
    other, *_ = joint.encoded(bank, base, 8, 1, file, "two")
    assert torch.equal(first, kept) and not torch.equal(first, other)


def test_entries_are_pictures_their_normals_and_masks_each_with_its_words(bank):
    pictures, words, defects = joint.entries(bank, 0, 8, seed=0)
    assert pictures.shape == (8, 3, small.SIZE, small.SIZE) and defects.shape[1] == 1
    for i, (text, picture, defect) in enumerate(zip(words, pictures, defects, strict=True)):
        thing, name = bank.things[i].replace("_", " "), bank.defects[i].replace("_", " ")
        if name == "good":
            continue
        if i < 5:
            assert text == f"a photo of a {thing} with {name}"
            assert defect.sum() == bank.masks[i].sum() > 0
            assert picture.mean() == pytest.approx(bank.images[i].mean() / 255, abs=1e-5)
        elif i == 5:
            assert text == f"a photo of a {thing}" and not defect.any()
            assert picture.mean() == pytest.approx(bank.normals[i].mean() / 255, abs=1e-5)
        else:
            assert text == f"a mask of {name} on a {thing}" and not defect.any()
            assert picture.mean() == pytest.approx(bank.masks[i].mean(), abs=1e-5)
    # The bank has 12 rows: its next round shows row 0 without its defect.
    assert joint.entries(bank, 12, 20, seed=0)[1][0] == f"a photo of a {bank.things[0]}"


def test_own_categories_bring_their_normals_and_the_generators_defects(tmp_path):
    small.prepared(tmp_path / "disc")
    found = banks.own([tmp_path / "disc"])
    assert set(found.things) == {"disc"} and {"good", "scratch"} <= set(found.defects)
    good = np.array([name == "good" for name in found.defects])
    assert not found.masks[good].any() and found.masks[~good].any((1, 2)).all()
    np.testing.assert_array_equal(found.images[good], found.normals[good])
    normals = {picture.tobytes() for picture in found.images[good]}
    assert all(picture.tobytes() in normals for picture in found.normals)


def test_weights_by_timestep_follow_the_formula_for_v():
    abar = torch.tensor([0.99, 0.5, 0.01], dtype=torch.float64)
    raw = torch.tensor([5 / 100, 1 / 2, 0.01 / 0.99 / (1 + 0.01 / 0.99)], dtype=torch.float64)
    expected = raw / raw.mean()
    torch.testing.assert_close(joint.min_snr_weight(abar, 5.0), expected)
    assert torch.equal(joint.min_snr_weight(abar, None), torch.ones(3, dtype=torch.float64))


def test_any_name_has_tokens_of_its_own(bank):
    tokenizer = joint.build(options(), bank, seed=0).tokenizer
    names = ["qyzzx", "Kratzer", "划痕", "ß", "broken_large", "🔩"]
    ids = [tuple(tokenizer(name).input_ids) for name in names]
    assert len(set(ids)) == len(names) and all(len(row) > 2 for row in ids)
    assert tokenizer.unk_token is None
    for name, row in zip(names, ids, strict=True):
        assert tokenizer.decode(row, skip_special_tokens=True).strip() == name


def test_the_training_stops_by_the_clock_leaves_a_base_and_goes_on(tmp_path, textures, caplog):
    caplog.set_level(logging.INFO)
    places = {"prepared": [], "state": tmp_path / "state", "out": tmp_path / "base"}
    changes = {"photos": str(textures)}
    joint.run(config(hours=1e-9, **changes), **places)
    facts = json.loads((tmp_path / "base/manifest.json").read_text())
    assert facts["training"]["steps"] == 1
    early = BaseModel.load(tmp_path / "base").unet.state_dict()

    joint.run(config(**changes), **places)
    assert "resuming at step 1 of 6" in caplog.text
    facts = json.loads((tmp_path / "base/manifest.json").read_text())
    assert facts["training"]["steps"] == 6 and facts["psnr_db"] > 10
    steps = [json.loads(line)["step"] for line in (tmp_path / "base/stats.jsonl").open()]
    assert steps == [1, 2, 3, 4, 5, 6]

    card = (tmp_path / "base/README.md").read_text()
    assert "6 steps of 4" in card and "12 drawn pictures" in card and "Apache-2.0" in card
    assert "README.md" in provenance.outputs(tmp_path / "base/manifest.json")

    base = BaseModel.load(tmp_path / "base")
    late = base.unet.state_dict()
    assert any(not torch.equal(early[name], late[name]) for name in late)
    assert {p.dtype for p in base.unet.parameters()} == {torch.float32}
    assert base.prediction == "v_prediction"

    joint.run(config(**changes), **{**places, "state": tmp_path / "other", "out": tmp_path / "b"})
    whole = BaseModel.load(tmp_path / "b").unet.state_dict()
    assert all(torch.equal(late[name], whole[name]) for name in late)  # as in one go


def test_methods_grow_on_a_joint_base(tmp_path, textures):
    """Its width, tokens and prediction are others than those of the scratch base."""
    joint.run(
        config(photos=str(textures)), prepared=[], state=tmp_path / "s", out=tmp_path / "base"
    )
    prepared = Pictures.load(small.prepared(tmp_path / "prepared"))
    prompts = {"prompt": "*", "mask_prompt": "*"}
    for options in (
        small.dhdiff(text_tokens="all"),
        small.dualanodiff(trainable="all"),
        small.stage(),
        small.anomalydiffusion(**prompts),
    ):
        base = BaseModel.load(tmp_path / "base")
        learner = method_class(options.kind).create(options, base, 0)
        learner.begin(prepared)
        losses = learner.loss(prepared, torch.Generator().manual_seed(0))
        assert all(torch.isfinite(value) for value in losses.values()), options.kind


def test_a_base_of_own_pictures_does_not_give_them_away(tmp_path):
    prepared = [small.prepared(tmp_path / "disc")]
    values = {"own": True, "drawn": 0}
    places = {"prepared": prepared, "state": tmp_path / "state", "out": tmp_path / "base"}
    for wrong, line in (
        ({"size": 64}, "the prepared pictures have 32 pixels"),
        ({"entries": 4}, "there are 12 pictures, and the last would never be seen"),
    ):
        with pytest.raises(UserError, match=line):
            joint.run(config(**values, **wrong), **places)
    joint.run(config(**values), **places)
    card = (tmp_path / "base/README.md").read_text()
    assert "Apache" not in card and "the run's own categories" in card


def test_a_folder_of_somebody_else_is_left_alone(tmp_path, textures):
    for name in ("state", "out"):
        places = {"prepared": [], "state": tmp_path / f"{name}s", "out": tmp_path / f"{name}o"}
        (places[name] / "drawn").mkdir(parents=True)
        (places[name] / "README.md").write_text("mine")
        with pytest.raises(UserError, match="files that helixbench did not write"):
            joint.run(config(photos=str(textures)), **places)
        assert (places[name] / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"drawn": 0}, "drawn: 0 and own: false"),
        ({"drawn": 0, "own": True, "photos": "x"}, "photos are shown by drawn pictures"),
    ],
)
def test_settings_that_leave_nothing_to_learn_from_are_refused(changes, line):
    with pytest.raises(ValueError, match=line):
        options(**changes)


def test_a_folder_without_textures_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no pictures; write them"):
        banks.textures(tmp_path)


def test_the_base_of_the_package_is_whole_small_and_free():
    folder = Path(EMBEDDED)
    provenance.outputs(folder / "manifest.json")
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 40e6
    base = BaseModel.load(folder)
    pictures = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    latents = base.encode(pictures)
    assert latents.shape == (2, 8, 16, 16)
    text = base.embed(["a photo of a gear with crack"]).repeat(2, 1, 1)
    with torch.no_grad():
        noise = base.unet(latents, torch.tensor([500, 900]), text).sample
    assert torch.isfinite(noise).all()
    with open(folder / joint.ATTRIBUTION, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert {row["licence"] for row in rows} <= set(LICENCES) and len(rows) > 500
    assert all(row["authors"] and not row["file"].startswith("/") for row in rows)
    assert "Apache-2.0" in (folder / "README.md").read_text()
