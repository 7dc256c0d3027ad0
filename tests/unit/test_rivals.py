"""What every method that learns must keep: exact resume, a round trip through its folder, pairs
that depend on their plan alone."""

from __future__ import annotations

import json
from filecmp import cmp
from pathlib import Path

import pytest
import small
import torch
from test_drawing import KINDS as DRAWING
from test_generate import a_slice, generate

from helixbench.config import Slice
from helixbench.diffusion.base import BaseModel
from helixbench.diffusion.data import Pictures
from helixbench.engine import loop
from helixbench.errors import UserError
from helixbench.generate import stage as generate_stage
from helixbench.generate.plan import conditions, make_plan
from helixbench.methods.method import method_class
from helixbench.records import Pair, read_csv
from helixbench.schema.method import kinds
from helixbench.train import stage as train_stage

VARIANTS = {
    "dualanodiff": {
        "dualanodiff": {},
        "dualanodiff_all": {
            "trainable": "all",
            "background": True,
            "prompt_drop": 0.3,
            "text_rank": 0,
        },
    },
    "stage": {"stage": {}, "stage_all": {"trainable": "all"}},
    "anomalydiffusion": {
        "anomalydiffusion": {"masks": "plan"},
        "anomalydiffusion_all": {"trainable": "all", "mask_threshold": 0.0},
    },
    "realnet": {"realnet": {}},
    "dfmgan": {"dfmgan": {}},
}
RIVALS = {
    name: getattr(small, kind)(**changes)
    for kind, variants in VARIANTS.items()
    if kind in kinds()
    for name, changes in variants.items()
}
FILES = {"realnet": 3, "dfmgan": 1}
"""Files of weights: the base model's three and one, but for these."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    return small.prepared(tmp_path_factory.mktemp("data") / "disc")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    small.base().save(folder)
    return folder


def train(name: str, prepared: Path, base: Path, folder: Path, **optim) -> Path:
    options = RIVALS[name]
    options = options.model_copy(
        update={"optim": type(options.optim)(**{**options.optim.model_dump(), **optim})}
    )
    config = Slice({"run.seed": 0, f"train.methods.{name}": json.loads(options.model_dump_json())})
    train_stage.run(
        name,
        "Data",
        "disc",
        config,
        prepared=prepared,
        base=base,
        state=folder / "state",
        out=folder / "model",
    )
    return folder / "model"


@pytest.fixture(scope="module", params=RIVALS)
def trained(request, prepared, base, tmp_path_factory) -> tuple[str, Path]:
    """Name and folder of a method after a few steps at a rate that makes all its parts matter."""
    return request.param, train(
        request.param, prepared, base, tmp_path_factory.mktemp(request.param), steps=6, lr=1e-2
    )


def load(name: str, folder: Path):
    return method_class(RIVALS[name].kind).load(RIVALS[name], folder, small.sampling(steps=3))


def sample(method, prepared: Path, chosen=slice(None)):
    data = Pictures.load(prepared)
    plans = make_plan(data, generate(pairs=2), 0)[chosen]
    return method.sample(
        conditions(data, plans), [torch.Generator().manual_seed(plan.seed) for plan in plans]
    )


def test_pairs_are_valid_and_depend_on_the_plan_alone(trained, prepared):
    method = load(*trained)
    images, masks = sample(method, prepared)
    assert images.shape == (4, 3, small.SIZE, small.SIZE) and masks.shape == (
        4,
        1,
        small.SIZE,
        small.SIZE,
    )
    assert 0 <= images.min() and images.max() <= 1 and set(masks.unique().tolist()) <= {0.0, 1.0}
    again = sample(method, prepared)
    assert torch.equal(again[0], images) and torch.equal(again[1], masks)
    assert (images[0] - images[1]).abs().max() > 1e-3
    for i in range(4):
        image, mask = sample(method, prepared, slice(i, i + 1))
        torch.testing.assert_close(image[0], images[i], rtol=0, atol=1e-4)
        assert (mask[0] != masks[i]).float().mean() < 0.01
    assert method.describe()


def test_every_seed_gives_a_valid_pair_and_always_the_same(trained, prepared):
    """Also in another process, which loads the model anew; the plan's conditions are the same for
    all."""
    data, seeds = Pictures.load(prepared), [0, 1, 2**31, 2**53 + 99, 2**63 - 1]
    given = conditions(data, make_plan(data, generate(pairs=1), 0)[:1] * len(seeds))
    drawn = [
        load(*trained).sample(given, [torch.Generator().manual_seed(seed) for seed in seeds])
        for _ in range(2)
    ]
    (images, masks), again = drawn
    assert images.shape == (len(seeds), 3, small.SIZE, small.SIZE) and masks.shape == (
        len(seeds),
        1,
        small.SIZE,
        small.SIZE,
    )
    assert (
        images.isfinite().all()
        and 0 <= images.min()
        and images.max() <= 1
        and set(masks.unique().tolist()) <= {0.0, 1.0}
    )
    assert torch.equal(images, again[0]) and torch.equal(masks, again[1])
    assert len({image.numpy().tobytes() for image in images}) == len(seeds), (
        "two seeds gave one picture"
    )


def test_every_kind_is_tested_here_or_among_those_that_draw_or_in_a_file_of_its_own():
    here = {"crop_paste", *DRAWING, *(options.kind for options in RIVALS.values())}
    for kind in set(kinds()) - here:
        assert list(Path(__file__).parents[1].glob(f"*/test_{kind}.py")), kind


def test_every_kind_has_its_paragraph():
    page = (Path(__file__).parents[2] / "docs/rivals.md").read_text(encoding="utf-8")
    assert [kind for kind in kinds() if kind != "dhdiff" and f"`kind: {kind}`" not in page] == []


def test_a_trained_model_comes_back(trained, prepared, base):
    """The folder gives the samples of the model in memory, and its base part is a plain diffusers
    folder."""
    name, folder = trained
    kind = method_class(RIVALS[name].kind)
    first = load(name, folder)
    first.save(folder.parent / "again")
    second = load(name, folder.parent / "again")
    for a, b in zip(sample(first, prepared), sample(second, prepared), strict=True):
        assert torch.equal(a, b)
    untrained = kind.create(RIVALS[name], BaseModel.load(base), 0)
    untrained.begin(Pictures.load(prepared))
    untrained.sampling = small.sampling(steps=3)
    assert (sample(untrained, prepared)[0] - sample(first, prepared)[0]).abs().max() > 1e-3
    assert not list(folder.rglob("*.bin")) and (name == "dfmgan" or BaseModel.load(folder))


OTHER = {
    "dualanodiff": small.dualanodiff(rank=3),
    "stage": small.stage(vectors=3),
    "anomalydiffusion": small.anomalydiffusion(spatial_vectors=2),
    "dfmgan": small.dfmgan(w=8),
}


@pytest.mark.parametrize("name", OTHER)
def test_the_folder_of_other_settings_is_one_line(prepared, base, tmp_path, name):
    folder = train(name, prepared, base, tmp_path, steps=1)
    with pytest.raises(UserError, match="train again"):
        method_class(name).load(OTHER[name], folder, small.sampling())


def test_resume_after_a_kill_equals_the_unbroken_run(
    trained, prepared, base, tmp_path, monkeypatch
):
    (name, folder), real = trained, loop._State.save

    def dies(state):
        real(state)
        if state.step == 3:
            raise KeyboardInterrupt

    optim = {"steps": 6, "lr": 1e-2, "save_every_s": 1e-9}
    monkeypatch.setattr(loop._State, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        train(name, prepared, base, tmp_path, **optim)
    monkeypatch.setattr(loop._State, "save", real)
    again = train(name, prepared, base, tmp_path, **optim)
    weights = [file.relative_to(folder) for file in folder.rglob("*.safetensors")]
    assert len(weights) == FILES.get(name, 4)
    for file in weights:
        assert cmp(again / file, folder / file, shallow=False), file


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, options in RIVALS.items()
        if getattr(options, "trainable", name == "realnet" and "all") == "all"
    ],
)
def test_training_learns(name, prepared, base, tmp_path):
    """The loss falls; adapters alone have nothing to go by on a random U-Net."""
    folder = train(name, prepared, base, tmp_path, steps=60, lr=3e-3, log_every_s=1e-9)
    rows = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    terms = rows[0].keys() - {
        "step",
        "lr",
        "grad_norm",
        "steps_per_s",
        "images_per_s",
        "peak_rss_mib",
    }
    total = [sum(row[term] for term in terms) for row in rows]
    assert sum(total[-10:]) < 0.9 * sum(total[:10])


def test_the_stage_generates_from_a_trained_model(trained, prepared, tmp_path):
    name, folder = trained
    config = a_slice(name, RIVALS[name], generate(pairs=1))
    arguments = {
        "prepared": prepared,
        "model": folder,
        "state": tmp_path / "s",
        "out": tmp_path / "o",
    }
    generate_stage.run(name, "Data", "disc", config, **arguments)
    assert len(read_csv(tmp_path / "o/manifest.csv", Pair)) == 2
