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
from safetensors.torch import load_file

from helixbench import provenance
from helixbench.config import Slice
from helixbench.datasets.world.sources import LICENCES
from helixbench.diffusion.bank import ARRAYS, mask_prompt, prompt
from helixbench.diffusion.base import BaseModel
from helixbench.diffusion.data import Pictures
from helixbench.errors import UserError
from helixbench.methods.dhdiff.config import DHDiff
from helixbench.methods.dhdiff.joint import JointTask
from helixbench.methods.method import method_class
from helixbench.pictures.raw_mask import cells_to_mask, raw_mask_cells, reference_crop
from helixbench.pictures.transforms import symmetries, transform
from helixbench.schema.joint import Joint
from helixbench.schema.train import EMBEDDED
from helixbench.train import bank as banks
from helixbench.train import joint

SQUARE = symmetries(("hflip", "vflip", "rot90"))


def options(**changes) -> Joint:
    values = {
        "size": small.SIZE,
        "drawn": 12,
        "vocabulary": 300,
        "autoencoder": {"latent_channels": 4, "pictures": 12},
        "text_encoder": {"width": 32, "layers": 1, "heads": 2, "max_tokens": 24},
        "unet": {"channels": [16, 16, 32, 32], "head_dim": 8, "prediction": "v_prediction"},
        "optim": small.optim(steps=6, ema=0.5, save_every_s=1e-9, log_every_s=1e-9).model_dump(),
    }
    return Joint.model_validate(values | changes)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


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
    for name in ARRAYS:
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


def test_a_drawn_row_is_the_picture_or_its_normal_in_a_symmetry_of_the_square(bank):
    rows, normal = torch.arange(12), torch.arange(12) % 3 == 0
    pictures, masks = bank.draw(rows, normal, rng(), torch.device("cpu"))
    turned = set()
    for i in range(12):
        whole = (bank.normals if normal[i] else bank.images)[i]
        ways = {name: (transform(whole, name), transform(bank.masks[i], name)) for name in SQUARE}
        shown = (pictures[i].permute(1, 2, 0) * 255).round().byte().numpy()
        found = [
            name
            for name, (picture, mask) in ways.items()
            if (picture == shown).all() and (mask == masks[i, 0].bool().numpy()).all()
        ]
        turned |= set(found[:1])
        assert found
    assert len(turned) > 3


def test_pictures_their_normals_and_masks_are_shown_each_with_its_words(bank):
    base = joint.build(options(), bank, seed=0)
    task, seen = joint.Task(bank, base, torch.device("cpu")), set()
    pictures, texts, defects = task.pictures(300, rng())
    means = {
        "picture": bank.images.mean((1, 2, 3)) / 255,
        "normal": bank.normals.mean((1, 2, 3)) / 255,
        "mask": bank.masks.mean((1, 2)),
    }
    tokens = {
        tuple(base.tokens([text])[0].tolist()): (kind, i)
        for i in range(len(bank))
        for kind, text in (
            ("picture", prompt(bank.things[i], bank.defects[i])),
            ("normal", prompt(bank.things[i], "good")),
            ("mask", mask_prompt(bank.things[i], bank.defects[i])),
        )
    }
    for picture, text, defect in zip(pictures, texts, defects, strict=True):
        kind, _ = tokens[tuple(task.tokens[text].tolist())]
        seen.add(kind)
        near = np.abs(means[kind] - float(picture.mean())).min()
        assert near < 1e-4, (kind, near)
        assert bool(defect.any()) == (kind == "picture"), kind
    assert seen == {"picture", "normal", "mask"}
    assert torch.equal(task.tokens[0], base.tokens([""])[0])  # a dropped prompt


@pytest.mark.parametrize("reference", ["background", "cells"])
def test_the_joint_task_of_dhdiff_cuts_as_its_category_is_cut(bank, reference):
    """Cells, references, controls and words of a batch against the functions for one picture."""
    settings = small.dhdiff(
        text_tokens="all", reference=reference, normal_share=0.25, prompt_drop=0.3, raw_mask_drop=0
    )
    settings = settings.model_copy(update={"optim": small.optim(batch=64)})
    base = joint.build(options(), bank, seed=0)
    method = method_class("dhdiff").create(settings, base, 0)
    seen = []
    base.encode = lambda pictures: seen.append(pictures) or pictures[:, :1]
    batch = JointTask(method, bank, 5).batch(rng())
    images, masks, references, raw = seen[0].chunk(4)
    as_bytes = lambda x: (x.permute(1, 2, 0) * 255).round().byte().numpy()
    controls = set()
    for i in range(64):
        normal = not masks[i].any()
        assert i >= 16 or normal
        cells = raw[i, 0].bool().numpy()
        if not normal:
            mask = masks[i, 0].bool().numpy()
            wanted = cells_to_mask(5, raw_mask_cells(mask, 5), small.SIZE)
            np.testing.assert_array_equal(cells, wanted)
            wanted = reference_crop(as_bytes(images[i]), cells, reference)
            np.testing.assert_array_equal(as_bytes(references[i]), wanted)
            control = batch["control"][i, 0].bool().numpy()
            if (control == cells).all():
                controls.add("cells")
            elif (control == mask).all():
                controls.add("mask")
            else:
                controls.add("point")
                ys, xs = np.nonzero(control)
                assert mask[round(ys.mean()), round(xs.mean())] or len(ys) < 4
        elif reference == "cells":
            assert not cells.any() and (as_bytes(references[i]) == 128).all()
        text = batch["prompts"][i]
        assert text == "" or text.endswith(f" with {batch['words'][i]}") != normal
        assert not (batch["present"][i] and (normal or text == ""))
        assert bool(batch["has_raw"][i]) == (text != "")
    assert controls == {"cells", "mask", "point"}


def test_dhdiff_starts_from_its_joint_task_and_is_refused_without_one(tmp_path, textures):
    settings = small.dhdiff(text_tokens="all", trainable="all")
    values = {"photos": str(textures), "methods": {"helix": settings.model_dump(mode="json")}}
    places = {"prepared": [], "state": tmp_path / "state", "out": tmp_path / "base"}
    joint.run(config(**values), **places)
    manifest = json.loads((tmp_path / "base/manifest.json").read_text())
    assert manifest["starts"]["helix"]["steps"] == settings.optim.steps
    assert "dhdiff/unet/diffusion_pytorch_model.safetensors" in manifest["files"]

    def created(start, folder="base"):
        options = settings.model_copy(update={"start": start})
        return method_class("dhdiff").create(options, BaseModel.load(tmp_path / folder), 0)

    plain, jointly = created("base"), created("joint")
    trained = load_file(tmp_path / "base/dhdiff/unet/diffusion_pytorch_model.safetensors")
    for name, weight in jointly.base.unet.state_dict().items():
        assert torch.equal(weight, trained[name].float())
    moved = [
        name
        for name, weight in jointly.module.state_dict().items()
        if not torch.equal(weight, plain.module.state_dict()[name])
    ]
    assert any("zeta" in name for name in moved) and any("conv_in" in name for name in moved)
    for method in (plain, jointly):
        method.sampling = small.sampling()
        assert ("pre-trained on the joint task" in method.describe()) == (method is jointly)

    # Another training goes on from both, with the autoencoder and the words of the first.
    more = settings.model_copy(update={"start": "joint"}).model_dump(mode="json")
    values = {"photos": str(textures), "start": str(tmp_path / "base"), "methods": {"helix": more}}
    joint.run(config(**values), prepared=[], state=tmp_path / "on", out=tmp_path / "further")
    facts = json.loads((tmp_path / "further/manifest.json").read_text())
    (before,) = facts["before"]
    assert before["training"] == manifest["training"] and before["starts"] == manifest["starts"]
    for file in (tmp_path / "base").rglob("*.safetensors"):
        name = file.relative_to(tmp_path / "base")
        same = file.read_bytes() == (tmp_path / "further" / name).read_bytes()
        assert same == (name.parts[0] == "vae"), name
    card = (tmp_path / "further/README.md").read_text()
    assert card.count("6 steps in") == 2 and facts["licence"] == manifest["licence"] == joint.FREE

    joint.run(config(photos=str(textures)), **{**places, "out": tmp_path / "plain"})
    with pytest.raises(UserError, match="brings no DH-Diff that was trained on the joint task"):
        created("joint", "plain")
    rival = {"methods": {"x": small.stage().model_dump(mode="json")}}
    with pytest.raises(UserError, match="no joint task"):
        joint.run(config(photos=str(textures), **rival), **{**places, "out": tmp_path / "c"})


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
    assert "the base: 6 steps in" in card and "12 drawn pictures" in card and "Apache-2.0" in card
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
    with pytest.raises(UserError, match="the prepared pictures have 32 pixels"):
        joint.run(config(**values, size=64), **places)
    joint.run(config(**values), **places)
    card = (tmp_path / "base/README.md").read_text()
    assert "Apache" not in card and "the run's own categories" in card
    # Nor does what goes on from it, with free pictures alone; nor from a base of somebody else.
    small.base().save(tmp_path / "theirs")
    for start in ("base", "theirs"):
        out = tmp_path / f"from_{start}"
        more = config(start=str(tmp_path / start))
        joint.run(more, prepared=[], state=tmp_path / f"state_{start}", out=out)
        assert (
            "Licence: as that of the base that it went on from" in (out / "README.md").read_text()
        )


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
    assert latents.shape == (2, 12, 16, 16)
    text = base.embed(["a photo of a gear with crack"]).repeat(2, 1, 1)
    with torch.no_grad():
        noise = base.unet(latents, torch.tensor([500, 900]), text).sample
    assert torch.isfinite(noise).all()
    settings = json.loads((folder / "dhdiff/dhdiff.json").read_text())
    method = method_class("dhdiff").create(DHDiff.model_validate(settings), base, 0)
    assert any(weight.any() for name, weight in method.module.named_parameters() if "zeta" in name)
    with open(folder / joint.ATTRIBUTION, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert {row["licence"] for row in rows} <= set(LICENCES) and len(rows) > 500
    assert all(row["authors"] and not row["file"].startswith("/") for row in rows)
    assert "Apache-2.0" in (folder / "README.md").read_text()
