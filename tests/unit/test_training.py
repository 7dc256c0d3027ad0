"""The base model, DH-Diff as a method, and the stage `train`."""

from __future__ import annotations

import importlib
import json
import shutil
from filecmp import cmp
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from safetensors.torch import load_file
from test_generate import a_slice, generate

from helixbench import schema
from helixbench.config import Slice
from helixbench.diffusion.base import PARTS, BaseModel, words_of
from helixbench.diffusion.data import Pictures
from helixbench.engine import loop
from helixbench.errors import UserError
from helixbench.generate import gather
from helixbench.generate import stage as generate_stage
from helixbench.generate.plan import conditions, make_plan
from helixbench.methods.dhdiff.method import DHDiffMethod
from helixbench.pictures.transforms import clean_mask
from helixbench.records import Pair, read_csv
from helixbench.train import base as base_stage
from helixbench.train import stage as train_stage


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    return small.prepared(tmp_path_factory.mktemp("data") / "disc")


def base_config() -> Slice:
    return Slice(
        {
            "run.seed": 0,
            "train.base": "scratch",
            "train.scratch": json.loads(small.scratch().model_dump_json()),
        }
    )


def method_config(**changes) -> Slice:
    return Slice(
        {
            "run.seed": 0,
            "train.methods.dhdiff": json.loads(small.dhdiff(**changes).model_dump_json()),
        }
    )


def build_base(prepared: Path, folder: Path) -> Path:
    base_stage.run(
        "Data",
        "disc",
        base_config(),
        prepared=prepared,
        out=folder / "base",
    )
    return folder / "base"


def train(prepared: Path, base: Path, folder: Path, **changes) -> Path:
    config = method_config(**changes)
    train_stage.run(
        "dhdiff",
        "Data",
        "disc",
        config,
        prepared=prepared,
        base=base,
        state=folder / "state",
        out=folder / "model",
    )
    return folder / "model"


@pytest.fixture(scope="module")
def base(prepared, tmp_path_factory) -> Path:
    return build_base(prepared, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def model(prepared, base, tmp_path_factory) -> Path:
    return train(prepared, base, tmp_path_factory.mktemp("model"))


def test_base_is_a_diffusers_folder_of_safetensors_with_unit_latents(base, prepared):
    loaded = BaseModel.load(base)
    names = {str(p.relative_to(base)) for p in base.rglob("*") if p.is_file()}
    assert {
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "text_encoder/model.safetensors",
    } <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    assert loaded.scheduler.config.beta_schedule == "scaled_linear"
    index = json.loads((base / "model_index.json").read_text())
    for part in PARTS:  # diffusers finds all parts by it, and train.pretrained.path needs it, too
        package, kind = index[part]
        assert type(getattr(importlib.import_module(package), kind).from_pretrained(base / part))
    pictures = Pictures.load(prepared).autoencoder_batch(
        32, 0.25, torch.Generator().manual_seed(1)
    )[0]
    assert 0.5 < loaded.encode(pictures).std() < 2
    assert loaded.decode(loaded.encode(pictures)).shape == pictures.shape
    facts = json.loads((base / "manifest.json").read_text())
    assert facts["files"].keys() | {"manifest.json"} == names and facts["psnr_db"] > 25


def test_the_autoencoder_s_batch_says_where_the_defects_are(prepared):
    pictures, defects = Pictures.load(prepared).autoencoder_batch(
        16, 0.25, torch.Generator().manual_seed(1)
    )
    assert pictures.shape == (16, 3, small.SIZE, small.SIZE) and defects.shape == (
        16,
        1,
        small.SIZE,
        small.SIZE,
    )
    assert defects[:4].sum() == 0, "a mask shown as a picture has no defect"
    assert (defects.flatten(1).sum(1) > 0).sum() >= 6
    inside = pictures.mean(1, keepdim=True)[defects > 0]
    assert ((inside > 0.85) | (inside < 0.15)).all(), (
        "the test's defects are bright or dark squares"
    )


def test_prompts_are_told_apart(base):
    loaded = BaseModel.load(base)
    text = loaded.embed(["a photo of a disc with hole", "a photo of a disc with scratch", ""])
    assert text.shape[:2] == (3, 12)
    assert (text[0] - text[1]).abs().max() > 0.1 and (text[0] - text[2]).abs().max() > 0.1
    assert words_of(["broken_large  Disc-3"]) == ["3", "broken", "disc", "large"]


def test_a_base_that_predicts_v_gives_noise(tmp_path):
    """v = sqrt(abar) eps - sqrt(1 - abar) x0 (Salimans and Ho, 2022): what comes out is that eps,
    whoever calls it."""
    settings = small.scratch()
    settings = settings.model_copy(
        update={"unet": settings.unet.model_copy(update={"prediction": "v_prediction"})}
    )
    built = small.base(settings=settings)
    built.save(tmp_path)
    loaded = BaseModel.load(tmp_path)
    assert (
        loaded.prediction == "v_prediction" and loaded.scheduler.config.prediction_type == "epsilon"
    )
    g = torch.Generator().manual_seed(0)
    x0, noise, t = (
        torch.randn(2, 4, 8, 8, generator=g),
        torch.randn(2, 4, 8, 8, generator=g),
        torch.tensor([150, 990]),
    )
    abar = loaded.scheduler.alphas_cumprod[t][:, None, None, None]
    v = abar.sqrt() * noise - (1 - abar).sqrt() * x0
    loaded.unet.conv_out.forward = lambda hidden: v
    out = loaded.unet(loaded.scheduler.add_noise(x0, noise, t), t, torch.zeros(2, 3, 32)).sample
    torch.testing.assert_close(out, noise)


def test_a_base_that_predicts_something_else_is_refused(base, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    file = tmp_path / "base/scheduler/scheduler_config.json"
    file.write_text(file.read_text().replace('"epsilon"', '"sample"'))
    with pytest.raises(UserError, match="prediction_type sample"):
        BaseModel.load(tmp_path / "base")


def test_weighted_by_v_the_loss_is_that_of_v(prepared, base):
    """(eps - eps')^2 / abar = (v - v')^2 at a fixed latent; and large timesteps count more than in
    Eq. 8."""
    losses = {}
    for weighting in ("epsilon", "v"):
        method = DHDiffMethod.create(
            small.dhdiff(loss_weighting=weighting), BaseModel.load(base), 0
        )
        data = Pictures.load(prepared)
        method.begin(data)
        losses[weighting] = method.loss(data, torch.Generator().manual_seed(3))
    scheduler, rng = method.base.scheduler, torch.Generator().manual_seed(3)
    batch = method.batch(data, rng)
    noise = torch.randn((3, *batch["image"].shape), generator=rng)
    t = torch.randint(1000, (len(noise[0]),), generator=rng)
    abar = scheduler.alphas_cumprod[t][:, None, None, None]
    z = scheduler.add_noise(batch["image"], noise[0], t)
    flow = method.inputs(batch["reference"], batch["raw_mask"], t, batch["has_raw"])
    flow = method.flow(batch["control"], batch["present"], batch["prompts"], batch["words"], flow)
    reference = method.noised_reference(batch["reference"], noise[0], noise[2], t)
    reference = method.unet.encode_reference(reference, t, method.embed([""] * len(t)))
    a = scheduler.add_noise(batch["annotation"], noise[1], t)
    predicted = method.unet(z, a, t, method.embed(batch["prompts"]), reference, flow)[0]
    # x0 follows from z and a prediction of the noise, and v from both.
    v = [
        abar.sqrt() * e - (1 - abar).sqrt() * (z - (1 - abar).sqrt() * e) / abar.sqrt()
        for e in (predicted, noise[0])
    ]
    torch.testing.assert_close(
        losses["v"]["image"], (v[0] - v[1]).square().mean(), rtol=1e-3, atol=1e-5
    )
    torch.testing.assert_close(losses["epsilon"]["image"], (predicted - noise[0]).square().mean())


def test_what_lies_under_the_mask_weighs_more(prepared, base, monkeypatch):
    method = DHDiffMethod.create(
        small.dhdiff(defect_weight=3.0, normal_share=0.0), BaseModel.load(base), 0
    )
    data = Pictures.load(prepared)
    method.begin(data)
    seen = {}
    monkeypatch.setattr(
        method.unet,
        "forward",
        lambda z, a, *rest: seen.setdefault("zero", (torch.zeros_like(z), torch.zeros_like(a))),
    )
    losses = method.loss(data, torch.Generator().manual_seed(3))
    rng = torch.Generator().manual_seed(3)
    batch = method.batch(data, rng)
    noise = torch.randn((3, *batch["image"].shape), generator=rng)
    inside = torch.nn.functional.avg_pool2d(batch["mask"], 4)
    weight = 1 + 3 * inside
    expected = (weight * noise[0].square()).mean() / weight.mean()
    torch.testing.assert_close(losses["image"], expected)
    torch.testing.assert_close(losses["annotation"], noise[1].square().mean())


def test_a_batch_has_its_raw_masks(prepared, base):
    """Those of the pictures, none for normals; dropped with the prompt, and by themselves (reading
    9)."""
    config = small.dhdiff(
        optim=small.optim(batch=64), prompt_drop=0.2, raw_mask_drop=0.25, normal_share=0.5
    )
    method, data = DHDiffMethod.create(config, BaseModel.load(base), 0), Pictures.load(prepared)
    method.begin(data)
    batch = method.batch(data, torch.Generator().manual_seed(0))
    empty = method.base.encode(torch.zeros(1, 3, small.SIZE, small.SIZE))[0]
    torch.testing.assert_close(batch["raw_mask"][0], empty, rtol=1e-2, atol=1e-2)
    has_cells = (batch["raw_mask"] != batch["raw_mask"][0]).flatten(1).any(1)
    assert has_cells.tolist() == [False] * 32 + [True] * 32
    dropped = torch.tensor([prompt == "" for prompt in batch["prompts"]])
    assert 4 <= dropped.sum() <= 24 and not batch["has_raw"][dropped].any()
    alone = ~batch["has_raw"] & ~dropped
    assert 4 <= alone.sum() <= 26, "a quarter of those with a prompt"


def test_guidance_is_away_from_no_prompt_and_no_raw_mask(model, prepared, monkeypatch):
    method = DHDiffMethod.load(small.dhdiff(), model, small.sampling(steps=1, guidance=2.0))
    real, given = method.inputs, []
    monkeypatch.setattr(
        method,
        "inputs",
        lambda ref, raw, t, has: given.append(raw is not None) or real(ref, raw, t, has),
    )
    data = Pictures.load(prepared)
    plans = make_plan(data, schema.Generate(pairs=1), 0)[:1]
    method.sample(conditions(data, plans), [torch.Generator().manual_seed(0)])
    assert given == [True, False]


def test_a_missing_part_of_the_base_is_one_line(base, tmp_path):
    with pytest.raises(UserError, match="unet: no such folder"):
        BaseModel.load(tmp_path)


def test_training_learns(prepared, base, tmp_path):
    """A hundred steps halve the loss of the first ones, on both domains."""
    folder = train(
        prepared, base, tmp_path, optim=small.optim(steps=100, lr=3e-3, log_every_s=1e-9)
    )
    rows = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    for domain in ("image", "annotation"):
        assert np.mean([row[domain] for row in rows[-20:]]) < 0.5 * rows[0][domain]


def test_resume_after_a_kill_equals_the_unbroken_run(prepared, base, model, tmp_path, monkeypatch):
    real, options = loop._State.save, small.optim(save_every_s=1e-9)

    def dies(state):
        real(state)
        if state.step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop._State, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        train(prepared, base, tmp_path, optim=options)
    monkeypatch.setattr(loop._State, "save", real)
    again = train(prepared, base, tmp_path, optim=options)
    for name in ("dhdiff.safetensors", "unet/diffusion_pytorch_model.safetensors"):
        assert cmp(again / name, model / name, shallow=False)


@pytest.mark.parametrize("trainable", ["attention", "lora", "all"])
def test_what_is_trained(base, trainable):
    method = DHDiffMethod.create(small.dhdiff(trainable=trainable), BaseModel.load(base), 0)
    names = {name for name, p in method.module.named_parameters() if p.requires_grad}
    assert any("conv_in" in name for name in names) == (trainable != "attention")
    assert any("lora_A" in name for name in names) == (trainable == "lora")
    assert any(".attn1.to_q" in name for name in names) and any("zeta" in name for name in names)
    assert not any(p.requires_grad for p in method.base.vae.parameters())


@pytest.mark.parametrize("reference", ["cells", "tight", "background"])
@pytest.mark.parametrize("noise", ["same", "independent", "none"])
def test_every_reference_reading_trains_a_step(prepared, base, reference, noise):
    config = small.dhdiff(
        reference=reference, reference_noise=noise, augment=("hflip", "rot90"), control="broadcast"
    )
    method = DHDiffMethod.create(config, BaseModel.load(base), 0)
    small.randomise(method.unet.helix, 0.02)
    terms = method.loss(Pictures.load(prepared), torch.Generator().manual_seed(0))
    sum(terms.values()).backward()
    zeta = method.unet.helix["encoder_0_0"]["dda"].zeta.weight.grad
    assert set(terms) == {"image", "annotation"} and zeta.abs().max() > 0


def test_same_noise_gives_the_target_away_in_a_blank_reference(prepared, base):
    """Reading 7's flag: where a `cells` reference is blank, z_R(t) - sqrt(a) z_blank is exactly
    sigma * the target."""
    method = DHDiffMethod.create(small.dhdiff(reference_noise="same"), BaseModel.load(base), 0)
    scheduler, t = method.base.scheduler, torch.tensor([400])
    blank, noise = (
        method.base.encode(torch.full((1, 3, small.SIZE, small.SIZE), 128 / 255)),
        torch.randn(1, 4, 8, 8),
    )
    z_r = method.noised_reference(blank, noise, torch.randn(1, 4, 8, 8), t)
    a = scheduler.alphas_cumprod[t]
    torch.testing.assert_close(
        (z_r - a.sqrt() * blank) / (1 - a).sqrt(), noise, rtol=1e-3, atol=1e-4
    )


def test_control_points_at_the_words_of_the_defect(base):
    method = DHDiffMethod.create(small.dhdiff(), BaseModel.load(base), 0)
    prompts = [method.prompt("disc", "hole"), ""]
    flow = method.flow(torch.ones(2, 1, 8, 8), torch.ones(2), prompts, ["hole", "hole"])
    ids = method.base.tokens(prompts)[0].tolist()
    hole = method.base.tokenizer("hole").input_ids[1]
    assert flow.inside[0].argmax() == ids.index(hole) and flow.inside[0].sum() == 1
    assert flow.outside[0, 0] == 1 and flow.inside[1, 0] == 1, (
        "an empty prompt has no word to point at"
    )


@pytest.mark.parametrize(
    "reading",
    [
        {"streams": "channels"},
        {"streams": "canvas"},
        {"trainable": "lora"},
        {"reference_encoder": "copy"},
        {"text_tokens": "all"},
        {
            "trainable": "attention",
            "checkpointing": True,
            "frozen_precision": "bf16",
            "offload": True,
            "optim": small.optim(precision="bf16", accumulate=2),
        },
    ],
    ids=str,
)
def test_other_readings_train_save_load_and_sample(prepared, base, tmp_path, reading):
    folder, data = train(prepared, base, tmp_path, **reading), Pictures.load(prepared)
    method = DHDiffMethod.load(small.dhdiff(**reading), folder, small.sampling())
    plans = make_plan(data, generate(pairs=1), 0)
    images, _ = method.sample(
        conditions(data, plans), [torch.Generator().manual_seed(p.seed) for p in plans]
    )
    assert images.shape == (2, 3, small.SIZE, small.SIZE) and torch.isfinite(images).all()
    resumed = train(prepared, base, tmp_path / "again", **reading)
    for name in ("dhdiff.safetensors", "unet/diffusion_pytorch_model.safetensors"):
        assert cmp(resumed / name, folder / name, shallow=False)


def test_text_past_the_longest_prompt_is_left_out_and_one_length_serves_all_batches(
    prepared, base, tmp_path
):
    method = DHDiffMethod.create(small.dhdiff(), BaseModel.load(base), 0)
    short, long = method.prompt("disc", "hole"), "a photo of a disc with scratch and hole"
    words = len(short.split()) + 2  # begin and end
    assert method.embed([short]).shape[1] == words
    method.begin(Pictures.load(prepared))
    assert method.embed([""]).shape[1] == method.embed([short]).shape[1] == words
    assert method.embed([short, long]).shape[1] == len(long.split()) + 2
    whole = DHDiffMethod.create(small.dhdiff(text_tokens="all"), BaseModel.load(base), 0)
    assert whole.embed([short]).shape[1] == small.scratch().text_encoder.max_tokens
    assert torch.equal(whole.embed([short])[:, :words], method.embed([short])), (
        "the text model looks back only"
    )
    flow = method.flow(torch.ones(1, 1, 8, 8), torch.ones(1), [short], ["hole"])
    assert flow.inside.shape == flow.outside.shape == (1, words)
    folder = train(prepared, base, tmp_path, optim=small.optim(steps=1))
    assert DHDiffMethod.load(small.dhdiff(), folder, small.sampling()).text_length == words


def test_frozen_layers_in_half_precision_come_back_as_they_were_to_bf16(prepared, base, tmp_path):
    options = {
        "trainable": "attention",
        "frozen_precision": "bf16",
        "optim": small.optim(precision="bf16"),
    }
    method = DHDiffMethod.create(small.dhdiff(**options), BaseModel.load(base), 0)
    half = {name for name, p in method.unet.named_parameters() if p.dtype == torch.bfloat16}
    assert any("conv" in name for name in half) and not any(
        p.requires_grad for n, p in method.unet.named_parameters() if n in half
    )
    folder = train(prepared, base, tmp_path, **options)
    before, after = (
        load_file(f / "unet/diffusion_pytorch_model.safetensors") for f in (base, folder)
    )
    for name in before:
        assert after[name].dtype == torch.float32
        if f"unet.{name}" in half:
            assert torch.equal(after[name], before[name].bfloat16().float())
    with pytest.raises(ValueError, match="needs optim.precision bf16"):
        small.dhdiff(frozen_precision="bf16")


def test_with_offload_the_autoencoder_comes_for_new_pictures_only(prepared, base):
    method = DHDiffMethod.create(small.dhdiff(offload=True), BaseModel.load(base), 0)
    data, moves = Pictures.load(prepared), []
    method.base.vae.to = lambda device: moves.append(str(device))
    for _ in range(60):
        method.batch(data, torch.Generator().manual_seed(0))
    assert moves == ["cpu", "cpu"] * (len(moves) // 2) and 0 < len(moves) <= 8, (
        "one visit for each kind of picture"
    )


def test_compiled_parts_are_the_same_function(base):
    plain, compiled = (
        DHDiffMethod.create(small.dhdiff(compile=flag), BaseModel.load(base), 0).unet
        for flag in (False, True)
    )
    found = [m for m in compiled.modules() if m._compiled_call_impl is not None]
    assert {type(m).__name__ for m in found} == {"ResnetBlock2D", "FeedForward"}
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    z, t, text = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 6, 32)
    with torch.no_grad():
        for a, b in zip(plain(z, z, t, text), compiled(z, z, t, text), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_prediction_can_stand_in_for_the_reference_noise(prepared, base, tmp_path):
    """Reading 7's fallback: from the second step on the reference gets the predicted noise, not the
    initial one."""
    folder, data = (
        train(prepared, base, tmp_path, reference_noise="same", optim=small.optim(steps=1)),
        Pictures.load(prepared),
    )
    plans, seen = make_plan(data, generate(pairs=1), 0), {}
    for kind in ("initial", "predicted"):
        method = DHDiffMethod.load(
            small.dhdiff(reference_noise="same"),
            folder,
            small.sampling(steps=3, reference_noise=kind),
        )
        seen[kind], real = [], method.noised_reference

        def spy(latents, same, independent, t, *, seen=seen[kind], real=real):
            seen.append(same.clone())
            return real(latents, same, independent, t)

        method.noised_reference = spy
        method.sample(
            conditions(data, plans), [torch.Generator().manual_seed(p.seed) for p in plans]
        )
    assert all(torch.equal(noise, seen["initial"][0]) for noise in seen["initial"])
    assert torch.equal(seen["predicted"][0], seen["initial"][0])
    assert not torch.allclose(seen["predicted"][1], seen["predicted"][0])


@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++"])
@pytest.mark.parametrize("start", ["noise", "reference"])
def test_sampled_pairs_are_valid_and_seeded(prepared, model, sampler, start):
    options = small.sampling(
        steps=4, sampler=sampler, start=start, strength=0.5, control="detailed"
    )
    method, data = DHDiffMethod.load(small.dhdiff(), model, options), Pictures.load(prepared)
    plans = make_plan(data, generate(pairs=2), 0)

    def sample(chosen):
        return method.sample(
            conditions(data, chosen, "detailed"),
            [torch.Generator().manual_seed(p.seed) for p in chosen],
        )

    images, masks = sample(plans)
    assert images.shape == (4, 3, small.SIZE, small.SIZE) and masks.shape == (
        4,
        1,
        small.SIZE,
        small.SIZE,
    )
    assert 0 <= images.min() and images.max() <= 1 and set(masks.unique().tolist()) <= {0.0, 1.0}
    again = sample(plans)
    assert torch.equal(images, again[0]) and torch.equal(masks, again[1])
    assert (images[0] - images[1]).abs().max() > 1e-3
    # The batch that a pair is made in does not change it, up to the rounding of another matrix
    # size.
    torch.testing.assert_close(sample(plans[1:2])[0][0], images[1], rtol=0, atol=2e-3)


def test_generation_from_a_trained_model(prepared, model, tmp_path):
    config = a_slice("dhdiff", small.dhdiff(), generate(pairs=2))
    arguments = {
        "prepared": prepared,
        "model": model,
        "state": tmp_path / "s",
        "out": tmp_path / "o",
    }
    generate_stage.run("dhdiff", "Data", "disc", config, **arguments)
    pairs = read_csv(tmp_path / "o/manifest.csv", Pair)
    assert [p.prompt for p in pairs][:1] == ["a photo of a disc with hole"] and len(pairs) == 4


def folder_of(folder):
    """Every picture and the manifest: name -> bytes."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.suffix in (".png", ".csv")
    }


def test_any_number_of_shards_makes_the_same_bytes_also_after_a_kill(
    prepared, model, tmp_path, monkeypatch
):
    """Eleven blocks of two; a first run says which masks the gate must turn down for about half of
    the pairs to be drawn again."""
    whole = {"prepared": prepared, "model": model, "state": tmp_path / "s"}
    loose = schema.Gate(limits="fixed", min_area=0.0, max_area=1.0, max_border=1.0)
    config = a_slice("dhdiff", small.dhdiff(), generate(pairs=11, batch=2, gate=loose))
    generate_stage.run("dhdiff", "Data", "disc", config, **whole, out=tmp_path / "loose")
    middle = float(
        np.median([pair.mask_area for pair in read_csv(tmp_path / "loose/manifest.csv", Pair)])
    )
    gate = loose.model_copy(update={"max_area": middle, "redraws": 2})
    config = a_slice("dhdiff", small.dhdiff(), generate(pairs=11, batch=2, gate=gate))

    def part(folder, k, n):
        folders = {
            "prepared": prepared,
            "model": model,
            "state": folder / "s",
            "out": folder / "o",
            "record": folder / f"{k}of{n}",
        }
        generate_stage.run_part("dhdiff", config, **folders, part=(k, n))
        return folders["record"]

    def shards(folder, n):
        records = [part(folder, k, n) for k in reversed(range(1, n + 1))]
        gather.run("dhdiff", "disc", config, records=records, state=folder / "s", out=folder / "o")
        return folder_of(folder / "o")

    generate_stage.run("dhdiff", "Data", "disc", config, **whole, out=tmp_path / "whole")
    expected = folder_of(tmp_path / "whole")
    assert json.loads((tmp_path / "whole/manifest.json").read_text())["takes_raw_mask"] is True
    redraws = [pair.redraws for pair in read_csv(tmp_path / "whole/manifest.csv", Pair)]
    assert len(expected) == 2 * 22 + 1 and 0 < sum(redraws) < 2 * 22
    for n in (1, 2, 3):
        assert shards(tmp_path / f"{n}", n) == expected

    # Killed in the middle of writing the third block of the second of two; then three shards finish
    # it.
    real, calls = generate_stage._write, []

    def dies(kept, *rest):
        calls.append(1)
        if len(calls) == 3:
            real(kept[:1], *rest)
            raise KeyboardInterrupt
        return real(kept, *rest)

    monkeypatch.setattr(generate_stage, "_write", dies)
    with pytest.raises(KeyboardInterrupt):
        part(tmp_path / "cut", 2, 2)
    assert len(list((tmp_path / "cut/s").glob("block*.json"))) == 2
    assert shards(tmp_path / "cut", 3) == expected
    assert len(calls) == 3 + 11 - 2


def test_small_components_are_dropped():
    mask = np.zeros((20, 20), bool)
    mask[2:6, 2:6] = True
    mask[15, 15:19] = True
    assert clean_mask(mask).sum() == 16


def test_stable_diffusion_s_format_goes_through_the_same_code(prepared, tmp_path):
    """A small folder with Stable Diffusion 1.5's block types and PNDM scheduler: load, train, save,
    sample."""
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel

    sd = small.base()
    sd.unet = UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=2,
        cross_attention_dim=32,
        attention_head_dim=4,
    )
    sd.vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 16, 16, 16),
        norm_num_groups=8,
        latent_channels=4,
    )
    sd.scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True
    )
    sd.save(tmp_path / "sd")
    folder = train(
        prepared, tmp_path / "sd", tmp_path / "m", trainable="attention", optim=small.optim(steps=2)
    )
    method, data = (
        DHDiffMethod.load(small.dhdiff(), folder, small.sampling()),
        Pictures.load(prepared),
    )
    plans = make_plan(data, generate(pairs=1), 0)
    images, _ = method.sample(
        conditions(data, plans), [torch.Generator().manual_seed(p.seed) for p in plans]
    )
    assert images.shape == (2, 3, small.SIZE, small.SIZE) and torch.isfinite(images).all()
