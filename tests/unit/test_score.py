"""The stage `score` on tiny folders."""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from pages import FILES
from PIL import Image
from torch_fidelity.metric_isc import isc_features_to_metric

from helixbench import weights
from helixbench.config import Slice
from helixbench.errors import UserError
from helixbench.pictures.raw_mask import cells_to_mask, raw_mask_cells
from helixbench.protocol import Protocol
from helixbench.records import Pair, Sample, Score, format_cells, parse_cells, read_csv, write_csv
from helixbench.report import metrics as report_metrics
from helixbench.report import tables
from helixbench.score import inception, metrics, stage
from helixbench.score.ic_lpips import IcLpipsResult, PairwiseLpips, build_lpips, defect_crops
from helixbench.score.metrics.ic_lpips_variants import first_third
from helixbench.score.metrics.mask_in_cells import mask_in_cells

ROOT = Path(__file__).parents[2]
SIZE = 32


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def square(i):
    """A mask with a square at one of a few places."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[4 * i : 4 * i + 9, 3 : 3 + 6] = 255
    return mask


@pytest.fixture
def folders(tmp_path):
    """Two defect types, two anchors, one test picture and six pairs each; four normals."""
    rng = np.random.default_rng(0)
    prepared, pairs = tmp_path / "prepare", tmp_path / "pairs"
    samples, rows = [], []
    for defect in ("crack", "hole"):
        for i in range(3):
            sha = save(
                prepared / f"{defect}/{i}.png", rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
            )
            save(prepared / f"{defect}/{i}_mask.png", square(i))
            role = "test" if i == 2 else "generator"
            mask = f"{defect}/{i}_mask.png"
            samples.append(
                Sample(
                    f"{defect}_{i}",
                    "toy",
                    "disc",
                    defect,
                    role,
                    f"{defect}/{i}.png",
                    mask,
                    "",
                    "",
                    "",
                    "",
                    sha,
                )
            )
        for i in range(6):
            image, mask = (
                f"disc/test/{defect}/{i:03d}.png",
                f"disc/ground_truth/{defect}/{i:03d}_mask.png",
            )
            sha = save(pairs / image, rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8))
            mask_sha = save(pairs / mask, square(i))
            gate = "empty" if defect == "hole" and i == 5 else "ok"
            rows.append(
                Pair(
                    i,
                    "toy",
                    "disc",
                    defect,
                    "m",
                    image,
                    mask,
                    i,
                    "",
                    "",
                    "",
                    "",
                    gate,
                    2 * (gate != "ok"),
                    0.1,
                    sha,
                    mask_sha,
                )
            )
    for i in range(4):
        sha = save(prepared / f"good/{i}.png", rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8))
        samples.append(
            Sample(
                f"good_{i}",
                "toy",
                "disc",
                "good",
                "normal",
                f"good/{i}.png",
                "",
                "",
                "",
                "",
                "",
                sha,
            )
        )
    write_csv(prepared / "samples.csv", samples, Sample)
    write_csv(pairs / "manifest.csv", rows, Pair)
    (prepared / "split.json").write_text(json.dumps({"rule": "half", "sha256": "f" * 64}))
    return prepared, pairs


def config(**score):
    values = {
        "inception_score": {"network": "random", "splits": 3},
        "ic_lpips": {"network": "random", "cap": 3, "shuffles": 2},
    }
    return Slice({"score": {**values, **score}, "run.seed": 4})


def run(folders, out, values=None):
    stage.run(
        "m", "toy", "disc", values or config(), prepared=folders[0], pairs=folders[1], out=out
    )
    return {(row.defect, row.metric): row for row in read_csv(out, Score)}


def facts(row, *names):
    """Some facts of a row's protocol; all of them where none is named."""
    found = Protocol.parse(row.protocol).facts
    return tuple(found.get(name) for name in names) if names else found


def test_rows(folders, tmp_path):
    rows = run(folders, tmp_path / "scores.csv")
    metrics = {
        "inception_score",
        "kid",
        "ic_lpips",
        "ic_lpips_empty_clusters",
        "ic_lpips_single_clusters",
        "ic_lpips_defect",
    }
    metrics |= {
        "mask_agreement",
        "mask_agreement_shuffled",
        "mask_agreement_real",
        "gate_failed",
        "redraws",
    }
    assert set(rows) >= {
        (defect, metric) for defect in ("crack", "hole", "all") for metric in metrics
    }
    for metric in ("inception_score", "kid", "ic_lpips", "ic_lpips_defect", "mask_agreement"):
        parts = [rows[defect, metric].value for defect in ("crack", "hole")]
        assert rows["all", metric].value == pytest.approx(np.mean(parts))
        assert rows["all", metric].n == 12 and rows["hole", metric].n == 6
    assert rows["crack", "inception_score"].value > 1
    assert rows["crack", "ic_lpips"].std is not None and rows["crack", "gate_failed"].std is None
    assert rows["hole", "gate_failed"].value == rows["all", "gate_failed"].value == 1
    assert rows["all", "redraws"].value == 2
    told = facts(rows["all", "inception_score"], "network", "weights", "splits", "n", "size")
    assert told == ("random", "none", 3, 6, SIZE)
    told = facts(rows["all", "ic_lpips"], "network", "cap", "shuffles", "split", "anchors")
    assert told == ("random", 3, 2, "half", "generator")
    assert rows["all", "ic_lpips_defect"].value not in (0, rows["all", "ic_lpips"].value)
    assert facts(rows["all", "ic_lpips_defect"], "crop") == ("defect",)
    assert facts(rows["crack", "kid"], "reference", "subsets", "subset_size") == ("all", 100, 1000)
    assert facts(rows["hole", "mask_agreement"], "neighbours", "of") == (8, None)
    real = rows["hole", "mask_agreement_real"]
    assert real.n == 2 and facts(real, "of") == ("real",)
    assert {
        (row.split, row.split_sha256, row.seed, row.config_digest) for row in rows.values()
    } == {("half", "f" * 64, 4, config().digest)}
    assert run(folders, tmp_path / "again.csv") == rows


def test_mask_in_cells_is_a_share_and_an_overlap():
    masks, cells = np.zeros((3, 4, 4), bool), np.zeros((3, 4, 4), bool)
    masks[0, 0] = masks[1, :2, :2] = True  # four pixels each; the third mask is empty
    cells[:2, :2, :2] = True
    share, overlap = mask_in_cells(masks, cells)
    assert share == pytest.approx([0.5, 1.0]) and overlap == pytest.approx([2 / 6, 1.0])


def test_masks_in_cells_are_scored_where_the_cells_were_given(folders, tmp_path):
    """Real masks beside them; not for methods whose cells are the donor's own and nothing that they
    were given."""
    prepared, pairs = folders
    cells = [format_cells(5, raw_mask_cells(square(i) > 0, 5)) for i in range(6)]
    rows = [
        dataclasses.replace(pair, raw_mask=cells[pair.index])
        for pair in read_csv(pairs / "manifest.csv", Pair)
    ]
    rows[0] = dataclasses.replace(rows[0], raw_mask="5x5:24")  # beside its mask
    write_csv(pairs / "manifest.csv", rows, Pair)
    samples = read_csv(prepared / "samples.csv", Sample)
    samples = [
        dataclasses.replace(s, raw_mask=cells[int(s.id[-1])] if s.mask else "") for s in samples
    ]
    write_csv(prepared / "samples.csv", samples, Sample)
    (pairs / "manifest.json").write_text(json.dumps({"takes_raw_mask": False}))
    assert not any("cells" in metric for _, metric in run(folders, tmp_path / "without.csv"))
    (pairs / "manifest.json").write_text(json.dumps({"takes_raw_mask": True}))
    found = run(folders, tmp_path / "scores.csv")
    assert (
        found["crack", "mask_in_cells"].value == pytest.approx(100 * 5 / 6)
        and found["hole", "mask_in_cells"].value == 100
    )
    share = found["all", "mask_in_cells"]
    assert share.n == 12 and facts(share, "cells") == (5,)
    held = [square(i) > 0 for i in range(2)]
    given = [cells_to_mask(5, parse_cells(cells[i])[1], SIZE) for i in range(2)]
    real = np.mean(
        [(mask & cell).sum() / (mask | cell).sum() for mask, cell in zip(held, given, strict=True)]
    )
    assert found["hole", "mask_cells_iou_real"].value == pytest.approx(100 * real)
    assert found["hole", "mask_cells_iou"].value < 100


def test_what_differs_from_category_to_category_is_no_part_of_a_protocol(folders, tmp_path):
    """Otherwise the categories of a data set would have no average and stand in columns of their
    own."""
    before = run(folders, tmp_path / "scores.csv")
    rows = read_csv(folders[0] / "samples.csv", Sample)
    fewer = [
        next(s for s in rows if s.role == "normal"),
        next(s for s in rows if s.defect == "crack" and s.role == "test"),
    ]
    write_csv(folders[0] / "samples.csv", [s for s in rows if s not in fewer], Sample)
    after = run(folders, tmp_path / "fewer.csv")
    assert after["crack", "kid"].value != before["crack", "kid"].value
    assert {key: row.protocol for key, row in after.items()} == {
        key: row.protocol for key, row in before.items()
    }


def test_too_few_images_for_the_splits_is_said(folders, tmp_path):
    rows = run(
        folders,
        tmp_path / "scores.csv",
        config(inception_score={"network": "random", "splits": 10}),
    )
    assert facts(rows["crack", "inception_score"], "splits", "splits_asked") == (6, 10)


def test_pairs_without_a_defect_change_no_protocol(folders, tmp_path):
    """A method that draws nothing somewhere stays in one column with the others: its crops are
    fewer, or none, which scores 0."""
    rows = read_csv(folders[1] / "manifest.csv", Pair)
    for i, row in enumerate(rows):
        if row.defect == "hole" or row.index == 0:
            rows[i] = dataclasses.replace(
                row, mask_sha256=save(folders[1] / row.mask, np.zeros((SIZE, SIZE), np.uint8))
            )
    write_csv(folders[1] / "manifest.csv", rows, Pair)
    rows = run(folders, tmp_path / "scores.csv")
    crack, hole, both = (rows[defect, "ic_lpips_defect"] for defect in ("crack", "hole", "all"))
    assert (
        (crack.n, hole.n, both.n) == (5, 0, 5)
        and hole.value == 0
        and both.value == pytest.approx(crack.value / 2)
    )
    assert crack.protocol == hole.protocol == both.protocol and facts(crack, "n") == (6,)


def test_altered_missing_and_stray_pictures_are_noticed(folders, tmp_path):
    picture = folders[1] / "disc/test/hole/002.png"
    save(picture, np.zeros((SIZE, SIZE, 3), np.uint8))
    with pytest.raises(UserError, match=r"hole/002\.png: altered"):
        run(folders, tmp_path / "scores.csv")
    picture.unlink()
    with pytest.raises(UserError, match=r"hole/002\.png: No such file"):
        run(folders, tmp_path / "scores.csv")
    rows = read_csv(folders[1] / "manifest.csv", Pair)
    write_csv(
        folders[1] / "manifest.csv",
        [dataclasses.replace(rows[0], image="../prepare/crack/0.png")],
        Pair,
    )
    with pytest.raises(UserError, match="stay inside"):
        run(folders, tmp_path / "scores.csv")
    assert not (tmp_path / "scores.csv").exists()


def test_a_type_without_anchor_is_an_error(folders, tmp_path):
    samples = read_csv(folders[0] / "samples.csv", Sample)
    write_csv(folders[0] / "samples.csv", [s for s in samples if s.defect != "hole"], Sample)
    with pytest.raises(UserError, match="hole has role generator"):
        run(folders, tmp_path / "scores.csv")


@pytest.mark.parametrize(
    ("section", "network"),
    [
        ("inception_score", "inception-v3"),
        ("inception_score", "squeezenet1_1"),
        ("ic_lpips", "vgg"),
        ("ic_lpips", "alex"),
    ],
)
def test_missing_weights_are_never_fetched(folders, tmp_path, monkeypatch, section, network):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    with pytest.raises(
        UserError, match=f"{weights.FILES[network]}.* missing; run .helixbench fetch weights"
    ):
        run(folders, tmp_path / "scores.csv", config(**{section: {"network": network}}))
    rows = run(folders, tmp_path / "auto.csv", config(**{section: {"network": "auto"}}))
    assert facts(rows["all", section], "network") == ("efficientnet_lite0",)


def test_damaged_weights_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub/checkpoints" / weights.FILES["squeezenet1_1"]
    file.parent.mkdir(parents=True)
    file.write_bytes(b"not weights")
    with pytest.raises(UserError, match="not a readable weights file") as caught:
        inception.InceptionScorer("squeezenet1_1", torch.device("cpu"))
    assert "\n" not in str(caught.value)


def squeezenet_weights(home, monkeypatch, gain):
    """A SqueezeNet file with known weights in the hub cache; gain sharpens its softmax."""
    monkeypatch.setenv("TORCH_HOME", str(home))
    torch.manual_seed(1)
    net = torchvision.models.squeezenet1_1(weights=None).eval()
    net.classifier[1].weight.data.mul_(gain)
    file = home / "hub/checkpoints" / weights.FILES["squeezenet1_1"]
    file.parent.mkdir(parents=True)
    torch.save(net.state_dict(), file)
    return net


def tints(n):
    """Pictures of one colour each, (n, 224, 224, 3) uint8."""
    return (
        np.random.default_rng(0)
        .integers(0, 256, (n, 1, 1, 3), np.uint8)
        .repeat(224, 1)
        .repeat(224, 2)
    )


def test_inception_score_is_the_formula_on_the_logits(tmp_path, monkeypatch):
    net, images = squeezenet_weights(tmp_path, monkeypatch, 10), tints(7)
    scorer = inception.InceptionScorer("squeezenet1_1", torch.device("cpu"), batch=3)
    assert scorer.network == "squeezenet1_1"
    features = scorer.features(images)
    value, std, used = scorer.inception_score(features, 2)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        logits = net(
            (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
            / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        )
    expected = isc_features_to_metric(logits, splits=2)
    assert value == pytest.approx(expected["inception_score_mean"], rel=1e-5) and value > 1.1
    assert std == pytest.approx(expected["inception_score_std"], rel=1e-3)
    assert used == 2


def test_a_score_that_is_not_a_number_is_refused(tmp_path, monkeypatch):
    squeezenet_weights(tmp_path, monkeypatch, 3e5)
    with pytest.raises(UserError, match="not a finite number"):
        scorer = inception.InceptionScorer("squeezenet1_1", torch.device("cpu"))
        scorer.inception_score(scorer.features(tints(3)), 1)


def test_random_network_tells_pictures_apart():
    scorer = inception.InceptionScorer("random", torch.device("cpu"))
    rng = np.random.default_rng(3)
    varied = np.stack(
        [np.full((SIZE, SIZE, 3), rng.integers(0, 256, 3), np.uint8) for _ in range(8)]
    )
    same = np.repeat(varied[:1], 8, axis=0)
    score = lambda images: scorer.inception_score(scorer.features(images), 1)[0]
    assert score(same) == pytest.approx(1, abs=1e-5)
    assert score(varied) > 1.05


def cubic_mmd(x, y):
    """Unbiased squared MMD of the kernel (x.y / d + 1)^3, written out (Binkowski et al., 2018)."""
    k = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3
    m, off = len(x), ~np.eye(len(x), dtype=bool)
    return k(x, x)[off].mean() + k(y, y)[off].mean() - 2 * k(x, y).sum() / m**2


def test_kid_is_the_formula_on_pooled_features_and_grows_with_the_distance():
    scorer = inception.InceptionScorer("random", torch.device("cpu"))
    rng = np.random.default_rng(0)
    dark, also_dark, bright = (
        rng.integers(low, low + 90, (12, SIZE, SIZE, 3)).astype(np.uint8) for low in (0, 0, 160)
    )
    one, two, far = (scorer.features(images) for images in (dark, also_dark, bright))
    assert one.pooled.shape == (12, 512)
    value, _, size = scorer.kid(one, far, 3, 1000)
    assert size == 12, "clipped to what is there"
    assert value == pytest.approx(
        cubic_mmd(one.pooled.double().numpy(), far.pooled.double().numpy()), rel=1e-4
    )
    assert value > 10 * abs(scorer.kid(one, two, 3, 1000)[0])
    assert scorer.kid(one, far, 3, 5)[2] == 5
    with pytest.raises(ValueError, match="two pictures"):
        scorer.kid(scorer.features(dark[:1]), far, 3, 5)


def test_what_one_type_has_too_few_pictures_for_is_no_number_of_the_category(folders, tmp_path):
    samples = read_csv(folders[0] / "samples.csv", Sample)
    write_csv(
        folders[0] / "samples.csv", [s for s in samples if s.id not in ("hole_1", "hole_2")], Sample
    )
    rows = run(folders, tmp_path / "scores.csv")
    assert ("crack", "kid") in rows and ("hole", "kid") not in rows and ("all", "kid") not in rows
    assert ("all", "ic_lpips") in rows


def test_variants_are_rows_of_their_own(folders, tmp_path):
    section = {
        "network": "random",
        "cap": 3,
        "shuffles": 2,
        "variants": ["seas", "dfmgan", "dfmgan_zero"],
    }
    rows = run(folders, tmp_path / "scores.csv", config(ic_lpips=section))
    assert facts(rows["all", "ic_lpips_seas"], "cap", "anchors") == (140, "generator")
    assert facts(rows["all", "ic_lpips_dfmgan"], "cap", "anchors") == (200, "all")
    assert facts(rows["all", "ic_lpips"], "cap") == (3,)
    skipped, zero = rows["crack", "ic_lpips_dfmgan"], rows["crack", "ic_lpips_dfmgan_zero"]
    assert facts(zero) == facts(skipped) | {"zero": True}
    assert IcLpipsResult(
        (0.6, 0.3), empty_clusters=1, single_clusters=2, clusters=4
    ).with_zeros == pytest.approx((0.15, 0.075))
    assert zero.value <= skipped.value


def test_the_first_third_is_that_of_the_sorted_files():
    blank = Sample("", "toy", "disc", "crack", "test", "", "", "", "", "", "", "")
    names = [f"a/{number:03d}.png" for number in (10, 2, 0, 5, 1, 7, 3)]
    known = [dataclasses.replace(blank, id=str(i), source=name) for i, name in enumerate(names)]
    chosen = first_third(known)
    assert {names[i] for i in np.flatnonzero(chosen)} == {"a/000.png", "a/001.png"}
    assert [first_third(known[:n]).sum() for n in range(7)] == [0, 0, 0, 1, 1, 1, 2]


def test_anchors_of_the_first_third_are_a_variant(folders, tmp_path):
    """Two of three pictures train the generator, one is the first third."""
    section = {"network": "random", "cap": 3, "shuffles": 2, "variants": ["anomalydiffusion"]}
    rows = run(folders, tmp_path / "scores.csv", config(ic_lpips=section))
    row, usual = rows["crack", "ic_lpips_anomalydiffusion"], rows["crack", "ic_lpips"]
    assert facts(row, "anchors", "cap") == ("third", 50)
    assert facts(usual, "anchors", "cap") == ("generator", 3)
    # with a single anchor the score is the mean over all pairs of pictures, at most 50
    images = [np.asarray(Image.open(folders[1] / f"disc/test/crack/{i:03d}.png")) for i in range(6)]
    pairwise = PairwiseLpips(build_lpips("random"), torch.device("cpu"))
    distances = pairwise.distances(np.stack(images))[np.triu_indices(6, 1)]
    assert row.value == pytest.approx(distances.mean(), rel=1e-6)
    # another split leaves these anchors where they are
    samples = read_csv(folders[0] / "samples.csv", Sample)
    moved = {"crack_0": "test", "crack_1": "test", "crack_2": "generator"}
    samples = [dataclasses.replace(s, role=moved.get(s.id, s.role)) for s in samples]
    write_csv(folders[0] / "samples.csv", samples, Sample)
    section["cap"] = 50
    again = run(folders, tmp_path / "again.csv", config(ic_lpips=section))
    assert again["crack", "ic_lpips_anomalydiffusion"].value == row.value
    write_csv(folders[0] / "samples.csv", [s for s in samples if s.id != "hole_2"], Sample)
    fewer = run(folders, tmp_path / "fewer.csv", config(ic_lpips=section))
    assert {defect for defect, metric in fewer if "anomalydiffusion" in metric} == {"crack"}


def test_crops_hold_the_defect_and_fill_the_picture():
    images, masks = np.zeros((4, SIZE, SIZE, 3), np.uint8), np.zeros((4, SIZE, SIZE), bool)
    for i, (rows, columns) in enumerate(
        (((2, 10), (20, 24)), ((28, 32), (30, 32)), ((0, 32), (0, 32)))
    ):
        masks[i, slice(*rows), slice(*columns)] = True
        images[i][masks[i]] = 255
    crops = defect_crops(images, masks)
    assert crops.shape == (3, SIZE, SIZE, 3), "an empty mask marks nothing"
    shares = (crops[..., 0] > 127).mean((1, 2))
    assert shares == pytest.approx(
        [0.5, 0.5, 1], abs=0.05
    )  # 8 x 4 in 8 x 8, 4 x 2 in 4 x 4, everything
    assert len(defect_crops(images, masks & False)) == 0


def test_the_metric_of_the_documentation_is_one_file(folders, tmp_path, monkeypatch):
    """Put into the folder of metrics, it is measured and stands below Table I; no list names it."""
    code = FILES["src/helixbench/score/metrics/mask_area.py"]
    (tmp_path / "added").mkdir()
    (tmp_path / "added/mask_area.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path / "added")])
    report_metrics.catalogue.cache_clear()
    report_metrics.by_key.cache_clear()
    try:
        rows = run(folders, tmp_path / "scores.csv")
        assert rows["crack", "mask_area"].value == pytest.approx(100 * 54 / SIZE**2)
        assert facts(rows["all", "mask_area"]) == {"size": SIZE, "split": "half"}
        datasets = {"toy": {"layout": "procedural", "categories": ["disc"], "procedural": {}}}
        values = {"train.methods": {"m": {"kind": "crop_paste"}}, "prepare.datasets": datasets}
        tables.run(
            1,
            Slice(values),
            published=ROOT / "resources/published",
            scores=[tmp_path / "scores.csv"],
            out=tmp_path,
        )
    finally:
        report_metrics.catalogue.cache_clear()
        report_metrics.by_key.cache_clear()
        sys.modules.pop("helixbench.score.metrics.mask_area", None)
    table = (tmp_path / "table_1.md").read_text(encoding="utf-8")
    assert "### mask area" in table
    assert "| disc | 5.27 |" in table and "mask_area, half split, 32 px" in table


def test_a_single_pair_has_no_score_that_needs_two(folders, tmp_path, caplog):
    """It would get the least Inception Score and no diversity, whatever it shows."""
    rows = read_csv(folders[1] / "manifest.csv", Pair)
    one = [next(row for row in rows if row.defect == name) for name in ("crack", "hole")]
    write_csv(folders[1] / "manifest.csv", one, Pair)
    rows = run(folders, tmp_path / "scores.csv")
    needs_two = {"inception_score", "kid", "ic_lpips", "ic_lpips_defect"}
    assert not needs_two & {metric for _, metric in rows}
    assert rows["crack", "ic_lpips_single_clusters"].value == 1
    for words in ("Inception Score is left out", "ic_lpips is left out", "KID is left out"):
        assert words in caplog.text
