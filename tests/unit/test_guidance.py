"""What reaches a trained DH-Diff, and what it knows at each timestep."""

from __future__ import annotations

import pytest
import small
import torch

from helixbench.diffusion.data import Pictures
from helixbench.engine.loop import fit
from helixbench.methods.dhdiff.guidance import Probe, coupling, guidance, x0_error
from helixbench.methods.dhdiff.method import DHDiffMethod


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Pictures:
    return Pictures.load(small.prepared(tmp_path_factory.mktemp("guidance") / "disc"))


def untrained(data: Pictures, **changes) -> DHDiffMethod:
    """On a random base that predicts v."""
    settings = small.scratch()
    unet = settings.unet.model_copy(update={"prediction": "v_prediction"})
    base = small.base(settings=settings.model_copy(update={"unet": unet}))
    config = {
        "reference": "background",
        "reference_noise": "none",
        "loss_weighting": "v",
        **changes,
    }
    method = DHDiffMethod.create(small.dhdiff(**config), base, 0)
    method.begin(data)
    return method


@pytest.fixture(scope="module")
def method(data, tmp_path_factory) -> DHDiffMethod:
    """Trained for 100 steps of 4, each with a defect, its prompt and a control: shares of a batch
    without them would need longer.
    """
    always = {"control_drop": 0.0, "normal_share": 0.0, "prompt_drop": 0.0}
    optim = small.optim(steps=100, lr=3e-3)
    method = untrained(data, reference_input="both", optim=optim, **always)
    folder = tmp_path_factory.mktemp("state")
    about = {
        "seed": 0,
        "state_dir": folder,
        "config_digest": "",
        "device": torch.device("cpu"),
        "name": "guidance",
    }
    fit(method.module, lambda step, rng: method.loss(data, rng), method.config.optim, **about)
    method.unet.eval()
    return method


def test_what_is_given_reaches_the_stream_that_it_guides(method, data):
    """Exchanged between pairs, it moves the noise prediction by 2 % of its RMS or more.

    The raw mask of a model that was given it by the grey of its reference alone moved it by 0.03 %.
    """
    moved = guidance(method, data)
    assert min(moved["raw_mask"]) > 0.02, moved
    assert max(moved["control"]) > 0.02, moved
    assert moved["reference"][0] > 0.02, moved
    assert max(moved["prompt"]) > 1e-3, moved


def test_what_an_untrained_model_is_given_moves_nothing(data):
    """All ways in start at zero, but for the words: the measure tells that from a trained model."""
    moved = guidance(untrained(data), data)
    assert moved["raw_mask"] == moved["reference"] == (0.0, 0.0)
    assert "raw_mask" not in guidance(untrained(data, annotation_input="none"), data)


def test_exchanged_conditions_are_other_ones(method, data):
    probe = Probe(method, data, 0.5)
    for name, key in (("prompt", "defect"), ("raw_mask", "raw_mask")):
        own = [getattr(data.samples[i], key) for i in probe.chosen]
        other = [getattr(data.samples[i], key) for i in probe.other(name)]
        assert all(one != two for one, two in zip(own, other, strict=True))


def test_the_error_of_clean_latents_is_that_of_the_noise_by_signal_to_noise(data, monkeypatch):
    method = untrained(data)
    probe = Probe(method, data, 0.3)
    abar = method.base.scheduler.alphas_cumprod[round(0.3 * 999)]
    # A network that predicts no noise at all takes the noisy latent over sqrt(abar) for the clean
    # one.
    monkeypatch.setattr(
        method.unet, "forward", lambda z, a, *rest: (torch.zeros_like(z), torch.zeros_like(a))
    )
    found = x0_error(method, data, 0.3)
    for error, z, x0 in zip(found, probe.z, probe.x0, strict=True):
        assert error == pytest.approx(float((z / abar.sqrt() - x0).square().mean()), rel=1e-3)


def test_a_cut_layer_is_one_that_the_streams_hear_each_other_through(method, data):
    before = {name: weight.clone() for name, weight in method.unet.state_dict().items()}
    found = coupling(method, data)
    layers = {layer.key for layer in method.unet.layers}
    assert {key for key, module in found if module == "merging"} == layers
    assert all(
        torch.equal(weight, before[name]) for name, weight in method.unet.state_dict().items()
    ), "put back"
    assert max(max(change) for change in found.values()) > 1e-3
    plain = untrained(data)
    # At its start merging carries nothing, and the mean of the two maps does.
    changes = coupling(plain, data)
    assert all(
        change == (0.0, 0.0) for (_, module), change in changes.items() if module == "merging"
    )
    assert max(max(change) for (_, module), change in changes.items() if module == "ssm") > 0
