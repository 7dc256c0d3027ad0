"""The drawn world: pictures that follow from their seeds, masks that mark what a defect changes."""

import numpy as np
import pytest

from helixbench.datasets.procedural.defects import BREAKERS
from helixbench.datasets.procedural.scenes import PAINTERS
from helixbench.datasets.world import defects, objects, sources, textures
from helixbench.datasets.world.textures import Grid
from helixbench.datasets.world.world import VISIBLE, World, changed

SIZE = 32


@pytest.fixture(scope="module")
def world():
    return World(SIZE, good=0.2)


@pytest.fixture(scope="module")
def drawn(world):
    return [world.sample(seed) for seed in range(60)]


def same(a, b):
    return (
        np.array_equal(a.image, b.image)
        and np.array_equal(a.mask, b.mask)
        and np.array_equal(a.normal, b.normal)
        and (a.object, a.defect, a.kind) == (b.object, b.defect, b.kind)
    )


def test_a_seed_gives_the_same_picture_whatever_was_drawn_before(drawn):
    fresh = World(SIZE, good=0.2)
    assert all(same(drawn[seed], fresh.sample(seed)) for seed in (41, 7, 23))
    assert not np.array_equal(drawn[1].normal, drawn[2].normal)


def test_pictures_have_the_stated_shapes_and_use_the_range(drawn):
    for d in drawn:
        assert d.image.shape == d.normal.shape == (SIZE, SIZE, 3) and d.mask.shape == (SIZE, SIZE)
        assert d.image.dtype == d.normal.dtype == np.uint8 and d.mask.dtype == bool
        assert d.object and d.defect
    normals = np.stack([d.normal for d in drawn])
    assert normals.min() < 20 and normals.max() > 235 and 60 < normals.mean() < 190


def test_a_good_picture_is_its_normal_and_has_an_empty_mask(drawn):
    good = [d for d in drawn if d.kind == "good"]
    assert 4 <= len(good) <= 24
    for d in good:
        assert not d.mask.any() and np.array_equal(d.image, d.normal) and d.defect == "good"


@pytest.mark.parametrize("kind", sorted(defects.DEFECTS))
def test_every_defect_changes_its_mask_and_nothing_else(world, kind):
    kinds = set()
    for seed in range(100, 104):
        d = world.sample(seed, kind)
        kinds.add(d.kind)
        assert 0 < d.mask.mean() <= 0.41
        assert np.array_equal(d.image[~d.mask], d.normal[~d.mask])
        difference = np.abs(d.image.astype(int) - d.normal).max(axis=2)[d.mask]
        assert (difference >= VISIBLE - 2).mean() > 0.5
    assert kind in kinds


def test_the_mask_is_what_visibly_differs_without_gaps_and_specks():
    before = np.full((SIZE, SIZE, 3), 100, np.uint8)
    after = before.copy()
    after[4:12, 4:12, 1] += VISIBLE
    after[7, 7] = before[7, 7]  # a gap inside
    after[20, 20] += 100  # a speck
    after[24:30, 24:30] += VISIBLE - 1  # not visible
    mask = np.zeros((SIZE, SIZE), bool)
    mask[4:12, 4:12] = True
    assert np.array_equal(changed(before, after), mask)


@pytest.mark.parametrize("kind", textures.KINDS)
def test_every_surface_is_drawn_in_range(kind):
    rgb, _ = textures.surface(np.random.default_rng(3), Grid(SIZE, 1.0), kind)
    assert rgb.shape == (SIZE, SIZE, 3) and rgb.dtype == np.float32
    assert np.isfinite(rgb).all() and rgb.min() >= 0 and rgb.max() <= 1.2


@pytest.mark.parametrize("kind", objects.OBJECTS)
def test_every_object_covers_a_part_of_the_picture(kind):
    shares = []
    for seed in range(3):
        scene, _, word = objects.placed(np.random.default_rng(seed), Grid(SIZE, 1.0), kind)
        shares.append(scene.alpha.mean())
        assert np.isfinite(scene.rgb).all() and scene.alpha.max() <= 1 and word
    assert 0.01 < np.mean(shares) < 0.95


def test_half_of_the_pictures_show_real_textures_where_there_are_any():
    red = np.zeros((2, 64, 64, 3), np.uint8)
    red[..., 0] = 200
    plain = World(SIZE, red, real=1.0, good=1.0).sample(0)
    assert plain.object in ("surface", "texture", "material")
    mixed = World(SIZE, red, real=0.5, good=1.0)
    real = sum(mixed.sample(n).object in ("surface", "texture", "material") for n in range(60))
    assert 15 <= real <= 45


def test_nothing_of_the_procedural_data_set_is_used():
    modules = (textures, objects, defects)
    held_out = {function.__module__ for function in (*PAINTERS.values(), *BREAKERS.values())}
    for module in modules:
        taken = {getattr(value, "__module__", None) for value in vars(module).values()}
        assert not taken & held_out


COPYRIGHT = """Format: 1.0

Files: *
Copyright: the team
License: GPL-2+

Files: data/a/*
       data/b/wall.png
Copyright: Ann
           Bob
License: CC0-1.0

Files: data/a/late.png
Copyright: Cid
License: CC-BY-SA-3.0

License: CC-BY-SA-3.0
 The long text.
"""


def test_only_files_under_free_licences_without_share_alike_are_taken(tmp_path, monkeypatch):
    package = sources.Package("pictures", "1", "0", ("*/data/*",))
    monkeypatch.setattr(sources, "PACKAGES", (package,))
    notes = tmp_path / "pictures/usr/share/doc/pictures/copyright"
    notes.parent.mkdir(parents=True)
    notes.write_text(COPYRIGHT)
    rng = np.random.default_rng(0)
    for name in ("a/one.png", "a/one_nm.png", "a/late.png", "b/wall.png", "b/other.png"):
        file = tmp_path / "pictures/usr/share/games/g/data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        sources.Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(file)
    found = sources.pictures(tmp_path)
    assert [(p.file.name, p.licence, p.authors) for p in found] == [
        ("one.png", "CC0-1.0", "Ann Bob"),
        ("wall.png", "CC0-1.0", "Ann Bob"),
    ]
    crops = list(sources.crops(found, 16, rng))
    assert len(crops) >= 8 and all(c.shape == (16, 16, 3) for c in crops)
    assert "Ann Bob" in sources.attribution(found)
