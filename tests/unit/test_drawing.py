"""The methods that draw defects without learning: DRAEM's synthesis, CutPaste, NSA."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import small
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from scipy import ndimage
from test_generate import generate

from helixbench.diffusion.data import Pictures
from helixbench.errors import UserError
from helixbench.generate.plan import conditions, make_plan
from helixbench.methods.draem import method as draem
from helixbench.methods.draem.method import altered
from helixbench.methods.method import method_class
from helixbench.methods.nsa import method as nsa
from helixbench.methods.nsa.method import changed, poisson_blend
from helixbench.methods.perlin import perlin, perlin_mask
from helixbench.methods.synthetic import Draws
from helixbench.schema import MethodConfig

KINDS = ("draem", "cutpaste", "nsa")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Pictures:
    return Pictures.load(small.prepared(tmp_path_factory.mktemp("data") / "disc", size=64))


@pytest.fixture(scope="module")
def objects(data) -> Pictures:
    """The same with a textured disc on a white background as normals."""
    y, x = np.ogrid[:64, :64]
    distance = np.hypot(y - 32, x - 32)
    picture = np.where(distance < 24, 90 + 60 * np.sin(y / 3) * np.cos(x / 5), 250)
    images = data.images.copy()
    images[data.normal] = (
        np.stack([picture + c for c in (0, -15, 5)], -1).clip(0, 255).astype(np.uint8)
    )
    return Pictures(data.samples, images, data.masks, data.cells)


def method(kind: str, **changes):
    config = TypeAdapter(MethodConfig).validate_python({"kind": kind, **changes})
    return method_class(kind)(config)


def sample(kind: str, data: Pictures, plans, **changes):
    generators = [torch.Generator().manual_seed(plan.seed) for plan in plans]
    return method(kind, **changes).sample(conditions(data, plans), generators)


def draws(seed: int = 0) -> Draws:
    return Draws(torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_the_defect_is_where_the_mask_is_and_nowhere_else(kind, objects):
    plans = make_plan(objects, generate(pairs=8), 0)
    changes = {"rotate_share": 0.0} if kind == "draem" else {}
    images, masks = sample(kind, objects, plans, **changes)
    change = (images - conditions(objects, plans).background).abs().mean(1, keepdim=True)
    assert images.shape == (16, 3, 64, 64) and 0 <= images.min() and images.max() <= 1
    for i in range(16):
        mask = masks[i] > 0.5
        # NSA's label starts at one grey level, and blended patches change little at their borders.
        assert mask.any() and change[i][mask].mean() >= (0.01 if kind == "nsa" else 0.03)
        assert change[i][~mask].mean() < 0.02
        assert change[i][mask].mean() > 5 * change[i][~mask].mean()


@pytest.mark.parametrize("kind", ["crop_paste", *KINDS])
def test_every_seed_gives_a_valid_pair_and_always_the_same(kind, objects):
    """Small seeds, the largest that a generator takes, and some between; the plan's conditions are
    the same for all."""
    seeds = [*range(12), 2**31, 2**53 + 99, 2**62 + 777, 2**63 - 1]  # torch reads the lower 32 bits
    given = conditions(objects, make_plan(objects, generate(pairs=1), 0)[:1] * len(seeds))
    drawn = [
        method(kind).sample(given, [torch.Generator().manual_seed(seed) for seed in seeds])
        for _ in range(2)
    ]
    (images, masks), again = drawn
    assert images.shape == (len(seeds), 3, 64, 64) and masks.shape == (len(seeds), 1, 64, 64)
    assert images.isfinite().all() and 0 <= images.min() and images.max() <= 1
    assert set(masks.unique().tolist()) == {0.0, 1.0} and (masks.amax((1, 2, 3)) == 1).all()
    assert torch.equal(images, again[0]) and torch.equal(masks, again[1])
    assert len({image.numpy().tobytes() for image in images}) == len(seeds), (
        "two seeds gave one picture"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_does_not_depend_on_its_batch(kind, objects):
    plans = make_plan(objects, generate(pairs=3), 0)
    together = sample(kind, objects, plans)
    for i, plan in enumerate(plans):
        image, mask = sample(kind, objects, [plan])
        assert torch.equal(image[0], together[0][i]) and torch.equal(mask[0], together[1][i])
    assert not torch.equal(together[0][0], together[0][1])


def test_perlin_noise_is_zero_at_its_corners_smooth_and_of_any_size():
    noise = perlin((60, 36), (5, 3), draws())
    assert np.abs(noise[::12, ::12]).max() < 1e-12, "gradient noise vanishes on its grid"
    assert 0.5 < np.abs(noise).max() < 1.1
    assert np.abs(np.diff(noise, axis=0)).max() < 0.4 and np.abs(np.diff(noise, axis=1)).max() < 0.4
    assert perlin((17, 23), (16, 23), draws()).shape == (17, 23)


def test_perlin_masks_are_finer_at_higher_scales():
    def pieces(scale):
        return np.mean(
            [
                ndimage.label(perlin_mask((64, 64), scale, 0.5, 90, draws(seed)))[1]
                for seed in range(20)
            ]
        )

    assert pieces(0) <= 2 < 5 < pieces(5)


def test_textures_of_a_folder_are_used_and_a_folder_without_them_is_one_line(objects, tmp_path):
    plans = make_plan(objects, generate(pairs=4), 0)
    with pytest.raises(UserError, match="no pictures"):
        sample("draem", objects, plans, textures=str(tmp_path))
    Image.new("RGB", (20, 30), (0, 255, 0)).save(tmp_path / "green.png")
    green = method("draem", textures=str(tmp_path))
    assert "textures of" in green.describe()
    texture = green.texture(conditions(objects, plans), 0, draws())
    assert texture.shape == (64, 64, 3) and (texture == [0, 1, 0]).all()
    (tmp_path / "green.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="green.png: not a readable picture"):
        sample("draem", objects, plans, textures=str(tmp_path))


def test_every_alteration_of_a_texture_keeps_its_range():
    texture = np.random.default_rng(0).random((16, 16, 3)).astype(np.float32)
    results = [altered(texture, draws(seed)) for seed in range(40)]
    assert all(
        result.shape == texture.shape and 0 <= result.min() and result.max() <= 1
        for result in results
    )
    assert np.mean([np.abs(result - texture).mean() for result in results]) > 0.1


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_cutpaste_areas(objects, share):
    plans = make_plan(objects, generate(pairs=10), 0)
    areas = sample("cutpaste", objects, plans, scar_share=share)[1].flatten(1).mean(1)
    low, high = ((0.02, 0.15), (20 / 256**2, 400 / 256**2))[int(share)]
    assert 0.7 * low < areas.min() and areas.max() < 1.5 * high


def tilt(mask: torch.Tensor) -> float:
    """Angle of a mask's long axis from the vertical [degree]."""
    (yy, yx), (_, xx) = torch.cov(mask[0].nonzero().T.float())
    return float(torch.rad2deg(torch.atan2(2 * yx, yy - xx) / 2))


@pytest.mark.parametrize("rotation", [0.0, 45.0])
def test_scars_are_rotated(objects, rotation):
    plans = make_plan(objects, generate(pairs=10), 0)
    shape = {"scar_share": 1.0, "scar_width": (8, 8), "scar_length": (60, 60)}
    tilts = np.array(
        [
            tilt(mask)
            for mask in sample("cutpaste", objects, plans, scar_rotation=rotation, **shape)[1]
        ]
    )
    assert np.abs(tilts).max() < rotation + 5
    assert (
        tilts.min() < -rotation / 2 and tilts.max() > rotation / 2
        if rotation
        else np.ptp(tilts) < 5
    )


@pytest.mark.parametrize("jitter", [0.0, 0.1])
def test_what_cutpaste_pastes_is_recoloured(data, jitter):
    """Two colours with one green: their mixtures have it too, what was recoloured does not."""
    y, x = np.ogrid[:64, :64]
    images = data.images.copy()
    images[data.normal] = np.where(
        (np.hypot(y - 32, x - 32) < 24)[..., None], (51, 51, 204), (204, 51, 51)
    )
    two = Pictures(data.samples, images, data.masks, data.cells)
    pictures, masks = sample("cutpaste", two, make_plan(two, generate(pairs=8), 0), jitter=jitter)
    change, inside = (pictures[:, 1] - 0.2).abs(), masks[:, 0] > 0
    assert change[~inside].max() < 1e-5
    each = torch.stack([green[mask].mean() for green, mask in zip(change, inside, strict=True)])
    assert each.median() > 0.003 if jitter else each.max() < 1e-5


def test_a_patch_of_the_picture_itself_blends_into_nothing():
    picture = np.random.default_rng(0).random((20, 24, 3)).astype(np.float32)
    np.testing.assert_allclose(
        poisson_blend(picture, picture[3:10, 5:17], 3, 5), picture, atol=1e-5
    )


def test_nsa_resizes_its_patches(monkeypatch):
    """Of a ramp of 1/64 a pixel, cut in squares of 14: a patch twice as large is half as steep."""
    shape = {"half_side": (0.11, 0.45), "gamma_scale": 1e-9}
    patches, everywhere = [], np.ones((64, 64), bool)
    ramp = np.broadcast_to(np.arange(64, dtype=np.float32)[:, None, None] / 64, (64, 64, 3))
    monkeypatch.setattr(
        nsa, "poisson_blend", lambda image, patch, y, x: patches.append(patch) or image
    )

    def cut(low: float, high: float, seed: int) -> np.ndarray:
        drawn = method("nsa", **shape, resize=(low, high))
        drawn.patch(ramp, ramp, everywhere, everywhere, draws(seed))
        return patches[-1]

    for scale in (0.5, 1.0, 2.0):
        patch = cut(scale, scale, 0)
        assert patch.shape == (14 * scale, 14 * scale, 3)
        np.testing.assert_allclose(np.diff(patch[3:-3], axis=0), 1 / 64 / scale, atol=1e-5)
    drawn = {cut(0.7, 1.3, seed).shape for seed in range(40)}
    assert min(drawn) == (9, 9, 3) and max(drawn) == (18, 18, 3) and len(drawn) > 4, (
        "N(1, 0.5), within its range"
    )


def test_nsa_s_patches_are_cut_by_the_picture_s_side(monkeypatch):
    """Its centre may lie near a side, which then takes a part of it away; half sides are whole."""
    pieces, everywhere, resized = [], np.ones((64, 64), bool), nsa._resized
    y, x = np.mgrid[:64, :64].astype(np.float32)
    places = np.stack([y, x, y], -1) / 64
    monkeypatch.setattr(nsa, "poisson_blend", lambda image, patch, y, x: image)

    def watched(picture, size):
        pieces.append((picture, size))
        return resized(picture, size)

    monkeypatch.setattr(nsa, "_resized", watched)
    for seed in range(60):
        drawn = method("nsa", half_side=(0.05, 0.4), gamma_scale=0.2)
        drawn.patch(places, places, everywhere, everywhere, draws(seed))
    pieces = [(piece, size) for piece, size in pieces if piece.ndim == 3]
    assert len(pieces) == 60
    cut = 0
    for piece, size in pieces:
        assert max(size) <= round(0.4 * 64) and min(size) >= 3, "the whole side as pasted"
        for axis in range(2):
            values = piece[:, 0, 0] if axis == 0 else piece[0, :, 1]
            first, last = round(float(values[0] * 64)), round(float(values[-1] * 64))
            odd = (last - first + 1) % 2 == 1
            cut += odd
            assert not odd or first == 0 or last == 63, "a patch that no side cuts has even sides"
    assert cut > 20


def test_nsa_s_label_is_a_change_of_a_grey_level_on_average():
    """More than 1/255 in the mean of the channels, median of 5 x 5; holes stay."""
    before = np.full((40, 40, 3), 0.5, np.float32)
    after = before.copy()
    after[4:16, 4:16] += 1.2 / 255
    after[7:13, 7:13] -= 1.2 / 255  # a hole
    after[20:30, 4:14, 0] += 2.4 / 255  # 0.8 on average
    after[20:30, 20:30] += 0.9 / 255
    after[4:6, 30:32] += 0.5  # a speck
    label = changed(before, after, method("nsa").config.tolerance)
    expected = np.zeros((40, 40), bool)
    expected[4:16, 4:16] = True
    expected[7:13, 7:13] = False
    expected = ndimage.median_filter(expected, 5)
    assert np.array_equal(label, expected) and label.any() and not label[10, 10]


def test_draem_s_pictures_are_turned_with_black_corners(objects):
    """Both the normal and the texture."""
    white, config = np.ones((32, 32, 3), np.float32), method("draem", rotate_share=1.0, textures="")
    given = conditions(objects, make_plan(objects, generate(pairs=1), 0)[:1])
    given = replace(given, background=torch.ones_like(given.background))
    seeds = range(8)
    pictures = [config.draw(given, 0, draws(seed)) for seed in seeds]
    corners = [image[0, 0][None] for image, mask in pictures if not mask[0, 0]]
    assert corners and np.mean([corner.max() < 0.5 for corner in corners]) > 0.6
    picture = Image.fromarray((white * 255).astype(np.uint8))
    turned = [np.asarray(draem._rotated(picture, draws(seed))) for seed in seeds]
    assert np.mean([image[0, 0].max() == 0 for image in turned]) > 0.6
    assert all(image[16, 16].min() == 255 for image in turned)


def test_draem_s_changes_have_imgaug_s_ranges(monkeypatch):
    """Sharpness 0 to 3, posterize 1 to 8 bits, cut-off 0 to 20 %, solarize in half of the draws."""
    seen = {"solarize": [], "posterize": [], "sharpness": [], "cutoff": []}
    keep = lambda name: lambda picture, value: seen[name].append(value) or picture
    monkeypatch.setattr(draem.ImageOps, "solarize", keep("solarize"))
    monkeypatch.setattr(draem.ImageOps, "posterize", keep("posterize"))
    contrast = lambda picture, cutoff=0: seen["cutoff"].append(cutoff) or picture
    monkeypatch.setattr(draem.ImageOps, "autocontrast", contrast)

    class Sharpness:
        def __init__(self, picture):
            self.picture = picture

        def enhance(self, factor):
            return keep("sharpness")(self.picture, factor)

    monkeypatch.setattr(draem.ImageEnhance, "Sharpness", Sharpness)
    rng, picture = draws(), Image.new("RGB", (8, 8), (90, 120, 60))
    for _ in range(200):
        for change in draem._CHANGES:
            change(picture, rng)
    assert 60 < len(seen["solarize"]) < 140 and all(32 <= t <= 128 for t in seen["solarize"])
    assert set(seen["posterize"]) == set(range(1, 9))
    assert 0 <= min(seen["sharpness"]) < 0.2 and 2.8 < max(seen["sharpness"]) <= 3
    assert min(seen["cutoff"]) == 0 and max(seen["cutoff"]) == 20


def test_blending_solves_the_poisson_equation():
    """Inside, the Laplacian is the patch's; on the border, nothing has moved."""
    rng = np.random.default_rng(1)
    picture, patch = 0.45 + 0.1 * rng.random((20, 24, 3)), 0.45 + 0.1 * rng.random((7, 9, 3))
    out = poisson_blend(picture, patch, 4, 6)

    def laplacian(a):
        return a[2:, 1:-1] + a[:-2, 1:-1] + a[1:-1, 2:] + a[1:-1, :-2] - 4 * a[1:-1, 1:-1]

    np.testing.assert_allclose(laplacian(out[4:11, 6:15]), laplacian(patch), atol=1e-5)
    changed = np.abs(out - picture).max(-1) > 1e-6
    assert changed[5:10, 7:14].all() and changed.sum() == 5 * 7


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("draem", {"opacity": [0.5, 0.2]}),
        ("draem", {"opacity": [0.5, 1.5]}),
        ("cutpaste", {"area": [0, 0.1]}),
        ("nsa", {"half_side": [0.1, 0.6]}),
    ],
)
def test_impossible_ranges(kind, changes):
    with pytest.raises(ValidationError, match=next(iter(changes))):
        method(kind, **changes)
