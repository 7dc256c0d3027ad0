import csv
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from helixbench.config import Slice, load, slice_config
from helixbench.errors import UserError
from helixbench.protocol import Protocol
from helixbench.records import Score, write_csv
from helixbench.report import layout, measured, metrics, published, published_only, render, tables
from helixbench.report.protocol import words

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "resources" / "published"
OPTIM = {"steps": 1, "batch": 1, "lr": 1e-4}
METHODS = {"dhdiff": {"kind": "dhdiff", "optim": OPTIM}, "crop": {"kind": "crop_paste"}}
DATASETS = {
    "MVTec-AD": {"layout": "mvtec_ad", "root": "raw", "categories": ["bottle", "cable"]},
    "Procedural": {"layout": "procedural", "categories": ["disc"], "procedural": {}},
}
ABLATIONS = {
    "full": {"of": "dhdiff", "change": {}, "rows": {8: "(4) DDA=yes SSM=yes", 9: "ours"}},
    "no_ssm": {"of": "dhdiff", "change": {"ssm_encoder": 0}, "rows": {8: "(2) DDA=yes SSM=no"}},
}
SQUEEZE = Protocol(
    "inception_score",
    {
        "library": "torch-fidelity 0.4",
        "network": "squeezenet1_1",
        "weights": "imagenet",
        "weights_hash": "1a2b",
        "splits": 10,
        "split": "half",
    },
)
UNET = Protocol(
    "localization",
    {"network": "unet", "width": 64, "weights": "none", "checkpoint": "last", "split": "half"},
)


def config(methods=METHODS, datasets=DATASETS, columns=3, ablations=ABLATIONS):
    values = {
        "report": {"grid_columns": columns},
        "train.methods": methods,
        "prepare.datasets": datasets,
    }
    return Slice({**values, "train.ablations": ablations})


def score(
    metric,
    value,
    dataset="MVTec-AD",
    category="bottle",
    method="dhdiff",
    seed=0,
    protocol=UNET,
    defect="all",
    std=None,
):
    return Score(
        dataset,
        category,
        defect,
        method,
        metric,
        value,
        std,
        40,
        seed,
        "half",
        "0" * 64,
        protocol.cell(),
        "d" * 16,
    )


def render_table(tmp_path, number, rows, **kwargs):
    file = tmp_path / "scores.csv"
    write_csv(file, rows, Score)
    tables.run(
        number, config(**kwargs), published=PUBLISHED, scores=[file], out=tmp_path / "report"
    )
    texts = {
        suffix: (tmp_path / "report" / f"table_{number}.{suffix}").read_text(encoding="utf-8")
        for suffix in ("csv", "md", "tex")
    }
    return list(csv.DictReader(texts["csv"].splitlines())), texts["md"], texts["tex"]


def pick(rows, **where):
    return [row for row in rows if all(row[key] == value for key, value in where.items())]


def detection(
    metrics=("image_auroc", "pixel_auroc", "pixel_ap", "image_ap", "pro", "f1_max"), seeds=(0, 1, 2)
):
    places = [("MVTec-AD", "bottle"), ("MVTec-AD", "cable"), ("Procedural", "disc")]
    for m, method in enumerate(METHODS):
        for p, (dataset, category) in enumerate(places):
            for seed in seeds:
                for k, metric in enumerate(metrics):
                    yield score(metric, 90 - 3 * m - p + k + seed, dataset, category, method, seed)


# ------------------------------------------------------------------------------------------------
# ablations


def arms(*methods_and_values):
    for method, value in methods_and_values:
        for category, change in (("bottle", 1), ("cable", -1)):
            for seed in (0, 1):
                yield score("pixel_ap", value + change + seed, "MVTec-AD", category, method, seed)
        yield score("image_auroc", 50, "MVTec-AD", "bottle", method)


def test_arms_stand_in_the_paper_s_rows(tmp_path):
    rows, md, tex = render_table(tmp_path, 8, [*arms(("dhdiff", 80), ("no_ssm", 70), ("crop", 99))])
    (full,) = pick(rows, method="(4) DDA=yes SSM=yes", category="average")
    assert (full["published"], full["measured"]) == ("86.4", "80.5")
    (arm,) = pick(rows, method="(2) DDA=yes SSM=no", category="average")
    assert (arm["published"], arm["measured"]) == ("78.6", "70.5")
    (plain,) = pick(rows, method="(1) DDA=no SSM=no")
    assert (plain["published"], plain["measured"]) == ("71.5", "")
    assert not pick(rows, method="Crop&Paste") and not pick(rows, metric="image_auroc")
    lines = [line for line in md.splitlines() if line.startswith("| (")]
    assert [line.split("|")[1].strip()[:3] for line in lines] == ["(1)", "(2)", "(3)", "(4)"]
    assert (
        "**86.4**" in lines[3] and "**80.5 ± 0.7**" in lines[3] and "<u>70.5 ± 0.7</u>" in lines[1]
    ), lines
    assert "| arm |" in md and "mean of 2 of" not in lines[0]
    assert r"\textbf{80.5 $\pm$ 0.7}" in tex


def test_a_row_of_ours_stands_beside_the_printed_ones(tmp_path):
    rows, md, _ = render_table(tmp_path, 9, [*arms(("dhdiff", 80))])
    (ours,) = pick(rows, method="ours", category="average")
    assert (ours["published"], ours["measured"]) == ("", "80.5")
    assert len(pick(rows, category="average")) == 5


def test_hand_filtered_pairs_are_told_beside_the_published_columns(tmp_path):
    rows = [score("pixel_ap", 80)]
    _, md, tex = render_table(tmp_path, 4, rows)
    html = (tmp_path / "report" / "table_4.html").read_text(encoding="utf-8")
    mark = re.search(r"\| AnomalyDiffusion <sup>(\d+)</sup> \|", md)[1]
    note = published.REMARKS["AnomalyDiffusion"]
    assert f"<sup>{mark}</sup> {note}" in md and f"<sup>{mark}</sup> {note}" in html
    assert note in tex
    anchors = list(csv.DictReader((PUBLISHED / "anchors.csv").read_text().splitlines()))
    (ours,) = pick(anchors, method="DualAnoDiff", metric="accuracy")
    assert ours["certainty"] == "low" and "second-hand" in ours["source"]


# ---------------------------------------------------------------------------------- tables about
# one data set alone

PAPER_SETS = {
    "MPDD": {"layout": "mpdd", "root": "raw", "categories": ["tubes", "connector"]},
    "MVTec-LOCO": {"layout": "mvtec_loco", "root": "raw", "categories": ["pushpins"]},
    **DATASETS,
}


def test_a_table_shows_its_own_data_set_and_what_the_paper_never_had(tmp_path):
    rows = [
        score("image_auroc", 90 + i, *place)
        for i, place in enumerate(
            (("MVTec-AD", "bottle"), ("MPDD", "tubes"), ("Procedural", "disc"))
        )
    ]
    found, _, _ = render_table(tmp_path, 3, rows, datasets=PAPER_SETS)
    assert {row["dataset"] for row in pick(found) if row["measured"]} == {"MPDD", "Procedural"}
    (tubes,) = pick(found, category="tubes", method="DH-Diff", metric="image_auroc")
    assert tubes["published"] and tubes["measured"] == "91"


def test_the_whole_of_mpdd_is_one_row(tmp_path):
    rows = [
        score("image_auroc", value, "MPDD", category)
        for category, value in (("tubes", 90), ("connector", 80))
    ]
    found, md, _ = render_table(tmp_path, 5, rows, datasets=PAPER_SETS)
    (ours,) = pick(found, method="DH-Diff", metric="image_auroc", dataset="MPDD")
    assert (ours["category"], ours["measured"]) == ("all", "85") and "mean of 2 categories" in ours[
        "protocol"
    ]
    assert not pick(found, category="tubes") and "| all |" in md
    half, _, _ = render_table(tmp_path, 5, rows[:1], datasets=PAPER_SETS)
    assert not any(row["measured"] for row in half), "an average of a part is none"


def test_logical_and_structural_anomalies_have_rows_of_their_own(tmp_path):
    rows = [
        score("image_auroc", v, "MVTec-LOCO", "pushpins", defect=d)
        for d, v in (("logical_anomalies", 70), ("structural_anomalies", 90), ("all", 80))
    ]
    found, _, _ = render_table(tmp_path, 7, rows, datasets=PAPER_SETS)
    ours = {row["category"]: row["measured"] for row in found if row["measured"]}
    assert ours == {"logical/pushpins": "70", "structural/pushpins": "90", "average": "80"}


# ------------------------------------------------------------------------------------------------
# published


@pytest.mark.parametrize("number", range(1, 10))
def test_recomputed_averages_are_the_checked_ones(number):
    table = published.read(PUBLISHED, number)
    with open(PUBLISHED / "average_checks.csv", newline="", encoding="utf-8") as handle:
        checks = [row for row in csv.DictReader(handle) if row["table"] == published.ROMAN[number]]
    assert len(checks) == len(table.recomputed)
    for row in checks:
        key = (row["dataset"], row["method"], row["metric"])
        assert table.recomputed[key] == pytest.approx(float(row["mean_of_rows"]), abs=6e-4)
        assert table.mismatch(*key) == (row["status"] == "MISMATCH"), key


def runnable():
    """Labels of the methods and comparators of params.yaml."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    named = [*values["train"]["methods"].values(), *values["detect"]["comparators"].values()]
    return {entry["label"] for entry in named}


COLUMNS_OF = {n: published.read(PUBLISHED, n).methods for n in range(1, 8)}


def test_every_published_column_runs_here_or_is_named_with_a_reason():
    columns = {name for methods in COLUMNS_OF.values() for name in methods}
    assert columns - runnable() == set(published_only.PUBLISHED_ONLY)
    assert not runnable() & set(published_only.PUBLISHED_ONLY)
    assert all(only.source and only.reason for only in published_only.PUBLISHED_ONLY.values())
    text = (ROOT / "docs/comparators.md").read_text(encoding="utf-8")
    for row in published_only.rows((published.ROMAN[n], names) for n, names in COLUMNS_OF.items()):
        assert row in text.splitlines()


@pytest.mark.parametrize("number", COLUMNS_OF)
def test_a_table_names_what_is_published_only(number, tmp_path):
    _, md, tex = render_table(tmp_path, number, [])
    html = (tmp_path / f"report/table_{number}.html").read_text(encoding="utf-8")
    only = [name for name in COLUMNS_OF[number] if name in published_only.PUBLISHED_ONLY]
    line = f"Published only: {', '.join(only)}; docs/comparators.md says why."
    assert only and line in md and line in html and line in tex
    assert published_only.remark(["DH-Diff", "PatchCore"]) == ""


def test_paper_order():
    table = published.read(PUBLISHED, 1)
    assert (
        table.methods[0] == "DiffAug" and table.methods[-1] == "DH-Diff" and len(table.methods) == 9
    )
    assert (
        table.categories("MVTec-AD")[:3] == ("bottle", "cable", "capsule")
        and len(table.categories("MVTec-AD")) == 15
    )


def test_notes_keep_what_is_about_the_number():
    table = published.read(PUBLISHED, 1)
    cell = table.cells["MVTec-AD", "bottle", "CDC", "IS"]
    assert (cell.certainty, cell.transcription, cell.note) == ("high", "row", "")
    assert "likely typo for 0.31" in table.cells["MVTec-AD", "capsule", "DH-Diff", "IC-LPIPS"].note
    assert (
        published.read(PUBLISHED, 4).cells["MVTec-AD", "average", "DevNet", "pixel_auroc"].note
        == ""
    )


def test_damaged_published_table_is_named(tmp_path):
    with pytest.raises(UserError, match="table_1.csv"):
        published.read(tmp_path, 1)
    (tmp_path / "table_1.csv").write_text("table,dataset\nI,x\n", encoding="utf-8")
    with pytest.raises(UserError, match="table_1.csv.*columns"):
        published.read(tmp_path, 1)


# ------------------------------------------------------------------------------------------------
# CSV form


def test_without_scores_the_table_is_the_paper(tmp_path):
    rows, md, _ = render_table(tmp_path, 1, [])
    assert list(rows[0]) == list(tables.COLUMNS)
    assert len(rows) == 288 and not any(row["measured"] or row["protocol"] for row in rows)
    (average,) = pick(rows, category="average", method="DH-Diff", metric="IS")
    assert (average["published"], average["recomputed"]) == ("1.94", "2.003")
    assert "measured: " not in md


def test_three_kinds_of_numbers_side_by_side(tmp_path):
    rows, _, _ = render_table(tmp_path, 2, detection())
    (cell,) = pick(
        rows, dataset="MVTec-AD", category="bottle", method="DH-Diff", metric="image_auroc"
    )
    assert cell["table"] == "II" and float(cell["published"]) > 99 and cell["recomputed"] == ""
    assert float(cell["measured"]) == pytest.approx(91)
    assert cell["protocol"] == "unet(width 64), half split, last checkpoint; 3 seeds, std 1"
    (ours,) = pick(
        rows, dataset="MVTec-AD", category="bottle", method="Crop&Paste", metric="image_auroc"
    )
    assert ours["published"] == "" and float(ours["measured"]) == pytest.approx(88)
    (other,) = pick(
        rows, dataset="Procedural", category="disc", method="DH-Diff", metric="pixel_auroc"
    )
    assert other["published"] == "" and float(other["measured"]) == pytest.approx(90)
    assert not pick(rows, metric="pro")


def test_measured_average_says_what_it_covers(tmp_path):
    rows, md, _ = render_table(tmp_path, 2, detection())
    (average,) = pick(
        rows, dataset="MVTec-AD", category="average", method="DH-Diff", metric="image_auroc"
    )
    assert float(average["measured"]) == pytest.approx(90.5)
    assert average["protocol"].endswith("3 seeds, std 1; mean of 2 of the paper's 15 categories")
    assert "mean of 2 of the paper's 15 categories" in md
    (own,) = pick(
        rows, dataset="Procedural", category="average", method="DH-Diff", metric="image_auroc"
    )
    assert own["protocol"].endswith("mean of 1 category")


def test_no_average_over_a_part(tmp_path):
    rows, _, _ = render_table(tmp_path, 2, [score("image_auroc", 91.0)])
    assert (
        pick(rows, category="bottle", method="DH-Diff", metric="image_auroc")[0]["measured"] == "91"
    )
    assert (
        pick(rows, dataset="MVTec-AD", category="average", method="DH-Diff", metric="image_auroc")[
            0
        ]["measured"]
        == ""
    )


def test_table_4_carries_what_else_was_measured(tmp_path):
    rows, md, tex = render_table(tmp_path, 4, detection())
    for metric in ("pro", "f1_max", "image_ap"):
        assert all(row["published"] == "" and row["measured"] for row in pick(rows, metric=metric))
        assert len(pick(rows, metric=metric, category="bottle")) == 2
    assert "## Also measured" in md and "### PRO" in md
    assert tex.count(r"\begin{table*}") == 2


def test_defect_rows_are_not_the_category(tmp_path):
    rows, _, _ = render_table(
        tmp_path, 1, [score("inception_score", 1.5, defect="hole"), score("inception_score", 2.5)]
    )
    (cell,) = pick(rows, category="bottle", method="DH-Diff", metric="IS")
    assert cell["measured"] == "2.5"


def test_one_seed_shows_the_spread_over_shuffles(tmp_path):
    rows, md, _ = render_table(tmp_path, 1, [score("ic_lpips", 0.234, std=0.012, protocol=SQUEEZE)])
    (cell,) = pick(rows, category="bottle", method="DH-Diff", metric="IC-LPIPS")
    assert (
        cell["protocol"].endswith("1 seed, std 0.012 over shuffles")
        and "seed 0" not in cell["protocol"]
    )
    assert "0.23 ± 0.01" in md


def test_a_score_without_a_value_is_shown_as_such(tmp_path):
    rows, md, _ = render_table(
        tmp_path, 1, [score("ic_lpips", float("nan")), score("ic_lpips", 0.2, method="crop")]
    )
    assert (
        pick(rows, category="bottle", method="DH-Diff", metric="IC-LPIPS")[0]["measured"] == "nan"
    )
    assert "n/a" in md


# ------------------------------------------------------------------------------------------------
# protocols, errors


def test_protocols_never_share_a_column(tmp_path):
    best = UNET.having(checkpoint="best_on_test", validate_every=5)
    rows, md, tex = render_table(
        tmp_path, 2, [score("image_auroc", 91.0), score("image_auroc", 95.0, protocol=best)]
    )
    cells = pick(rows, category="bottle", method="DH-Diff", metric="image_auroc")
    assert [(cell["measured"], cell["protocol"].partition(";")[0]) for cell in cells] == [
        ("91", words(UNET)),
        ("95", words(best)),
    ]
    header = next(line for line in md.splitlines() if line.startswith("| category"))
    assert "measured: DH-Diff <sup>a</sup> | measured: DH-Diff <sup>b</sup> |" in header
    assert f"<sup>a</sup> {words(UNET)}" in md and f"<sup>b</sup> {words(best)}" in md
    assert r"\textbf{91.0}" not in tex and r"\textbf{95.0}" not in tex  # nothing to compare with


def test_the_split_is_part_of_the_protocol(tmp_path):
    untold = UNET.without("split")
    rows, _, _ = render_table(tmp_path, 2, [score("image_auroc", 91.0, protocol=untold)])
    (cell,) = pick(rows, category="bottle", method="DH-Diff", metric="image_auroc")
    assert cell["protocol"] == f"{words(UNET)}; 1 seed"


def test_substitute_network_is_named_in_the_header(tmp_path):
    _, md, tex = render_table(tmp_path, 1, [score("inception_score", 1.4, protocol=SQUEEZE)])
    assert "measured: DH-Diff (squeezenet1_1 network) <sup>a</sup>" in md
    assert r"DH-Diff (squeezenet1\_1)" in tex


def test_two_methods_may_not_have_one_name(tmp_path):
    twins = {"dhdiff": METHODS["dhdiff"], "no_dda": {**METHODS["dhdiff"], "dda_encoder": 0}}
    with pytest.raises(UserError, match=r"label of no_dda"):
        render_table(tmp_path, 1, [], methods=twins)
    twins["no_dda"]["label"] = "DH-Diff w/o DDA"
    rows, _, _ = render_table(
        tmp_path, 1, [score("inception_score", 1.5, method="no_dda")], methods=twins
    )
    assert pick(rows, method="DH-Diff w/o DDA", category="bottle")[0]["measured"] == "1.5"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([score("image_auroc", 1, method="other")], "'other' is no method or comparator"),
        ([score("image_auroc", 1, category="pill")], "MVTec-AD/pill is not in prepare.datasets"),
        (
            [score("image_auroc", 1), score("image_auroc", 2)],
            "image_auroc of dhdiff on bottle, seed 0 is 2.0, but 1.0",
        ),
    ],
)
def test_contradicting_scores_are_refused(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        render_table(tmp_path, 2, rows)
    assert not (tmp_path / "report").exists()


def test_unknown_table_and_missing_file(tmp_path):
    with pytest.raises(UserError, match="table 10"):
        tables.run(10, config(), published=PUBLISHED, scores=[], out=tmp_path)
    with pytest.raises(UserError, match="gone.csv"):
        tables.run(1, config(), published=PUBLISHED, scores=[tmp_path / "gone.csv"], out=tmp_path)


# ------------------------------------------------------------------------------------------------
# rendering


def test_markdown_separates_kinds_and_footnotes_the_average(tmp_path):
    _, md, _ = render_table(tmp_path, 4, detection())
    header = next(line for line in md.splitlines() if line.startswith("| category"))
    names = [cell.strip() for cell in header.strip("|").split("|")[1:]]
    kinds = [name.startswith("measured: ") for name in names]
    assert kinds == sorted(kinds) and names[0] == "CFLOW" and names[9] == "DH-Diff"
    assert (
        names[10] == "measured: DH-Diff <sup>a</sup>"
        and names[11] == "measured: Crop&amp;Paste <sup>a</sup>"
    )
    assert "printed 81.4, but the mean of the printed rows is 82.23" in md
    widths = {
        line.count("|") for line in md.split("## pixel AP")[0].splitlines() if line.startswith("|")
    }
    assert len(widths) == 1
    assert "**Procedural**" in md and "*average*" in md


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_every_method_of_the_rivals_run_has_a_measured_column(tmp_path, number):
    """config/mini_rivals.yaml over config/mini.yaml: every kind of method, one column a metric,
    each with its own numbers."""
    run = load(ROOT / "params.yaml", ROOT / "config/mini.yaml", ROOT / "config/mini_rivals.yaml")
    methods = run.train.methods
    kinds = {method.kind for method in methods.values()}
    assert kinds == set(load(ROOT / "params.yaml").train.methods) and number in run.report.tables
    values = {
        (key, place): 10 + 2 * i + j
        for i, key in enumerate(methods)
        for j, place in enumerate(("disc", "weave"))
    }
    printed = published.read(PUBLISHED, number).metrics
    metrics = ("inception_score", "ic_lpips") if number == 1 else printed
    made = {key: UNET.having(pairs=f"as {key} makes them") for key in methods}
    rows = [
        score(metric, value, "Procedural", place, key, protocol=made[key])
        for metric in metrics
        for (key, place), value in values.items()
    ]
    write_csv(tmp_path / "scores.csv", rows, Score)
    keys = ("report", "prepare.datasets", "train.methods", "train.ablations", "detect.comparators")
    tables.run(
        number,
        Slice(slice_config(run, keys)),
        published=PUBLISHED,
        scores=[tmp_path / "scores.csv"],
        out=tmp_path,
    )
    written = list(
        csv.DictReader((tmp_path / f"table_{number}.csv").read_text(encoding="utf-8").splitlines())
    )
    lines = (tmp_path / f"table_{number}.md").read_text(encoding="utf-8").splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith("| category")]
    assert len(heads) == len(metrics)
    for metric, head in zip(printed, heads, strict=True):
        names = [
            re.sub(r" <sup>.*", "", cell.strip()) for cell in lines[head].strip("|").split("|")
        ]
        assert len([name for name in names if name.startswith("measured: ")]) == len(methods)
        for place in ("disc", "weave"):
            row = next(line for line in lines[head:] if line.startswith(f"| {place} "))
            shown = dict(zip(names, row.strip("|").split("|"), strict=True))
            for key, method in methods.items():
                (cell,) = pick(written, category=place, method=method.label, metric=metric)
                assert (
                    float(cell["measured"]) == values[key, place]
                    and f"as {key} makes" in cell["protocol"]
                )
                measured = shown[f"measured: {method.label.replace('&', '&amp;')}"]
                assert float(re.search(r"[\d.]+", measured).group()) == values[key, place]


def ranks(*contestants):
    """Of (text, value, kind, protocol)."""
    cells = [text and layout.Cell(text, value) for text, value, _, _ in contestants]
    contests = [
        layout.Column(kind, "any", "IS", protocol).contest for _, _, kind, protocol in contestants
    ]
    return [cell and cell.rank for cell in layout.ranked(cells, contests)]


def test_best_and_second_within_a_kind():
    printed = [(f"{v:.2f}", v, "published", None) for v in (1.5, 1.7, 1.7)]
    ours = ("9.00 ± 0.10", 9.0, "measured", UNET)
    assert ranks(*printed, (None, None, "published", None), ours) == [2, 1, 1, None, 0]
    assert ranks(("n/a", None, "measured", UNET), ours) == [0, 0], "no number, nothing to beat"


def test_the_lowest_kid_is_the_best():
    contest = layout.Column("measured", "any", "kid", SQUEEZE).contest
    cells = [layout.Cell(f"{v:.4f}", v) for v in (0.12, -0.001, 0.04)]
    assert [cell.rank for cell in layout.ranked(cells, [contest] * 3)] == [0, 1, 2]


def test_ranks_are_of_the_values_not_of_their_text():
    assert ranks(*((text, v, "measured", UNET) for text, v in (("–9", 1.0), ("8", 3.0)))) == [2, 1]


RESNET = Protocol("classification", {"network": "resnet34", "weights": "imagenet"})


def test_what_the_paper_does_not_print_stands_in_a_block_of_its_own(tmp_path):
    rows = [
        score("kid", value, protocol=SQUEEZE, method=method)
        for method, value in (("dhdiff", 0.04), ("crop", 0.0512))
    ]
    _, md, _ = render_table(tmp_path, 1, rows)
    assert "KID (low is good)" in md and "**0.0400**" in md and "0.0512" in md
    seeds = [
        score("accuracy", value, seed=i, protocol=RESNET) for i, value in enumerate((60.0, 70.0))
    ]
    _, md, _ = render_table(tmp_path, 2, seeds)
    assert "classification accuracy" in md and "65.0 ± 7.1" in md and "untrained" not in md
    untrained = [score("accuracy", 50.0, protocol=RESNET.having(weights="none"))]
    assert "(untrained network)" in render_table(tmp_path, 2, untrained)[1]


def test_the_checkpoint_chosen_by_the_test_pictures_has_a_column_of_its_own(tmp_path):
    section = load(ROOT / "params.yaml", ROOT / "config/rival_protocol.yaml").detect.localization
    every = section.optim.validate_every
    rows = [
        score("pixel_ap", value, protocol=UNET.having(checkpoint=kept, validate_every=every))
        for kept, value in zip(section.checkpoints, (61.5, 70.25), strict=True)
    ]
    _, md, _ = render_table(tmp_path, 4, rows)
    row = next(line for line in md.splitlines() if "bottle" in line and "61.5" in line)
    assert (
        "70.2" in row
        and "last checkpoint" in md
        and "best_on_test checkpoint (chosen by the test pictures, every 63 steps)" in md
    )


def test_how_pairs_were_made_does_not_keep_methods_from_being_compared():
    pairs, other = SQUEEZE.having(pairs="ddim 50 steps"), SQUEEZE.having(network="vgg")
    rows = [(str(i), i, "measured", p) for i, p in enumerate((SQUEEZE, pairs, other), 1)]
    assert ranks(*rows) == [2, 1, 0]


COMPARATOR = Protocol(
    "comparator",
    {
        "method": "PatchCore",
        "anomalib": "2.7.0",
        "network": "squeezenet1_1",
        "weights": "imagenet",
        "weights_hash": "b8a52dc0",
        "split": "half",
        "size": 256,
        "coreset": 0.01,
    },
)


@pytest.mark.parametrize(
    ("protocol", "text"),
    [
        (
            SQUEEZE.having(pairs="ddim 50 steps"),
            "IS torch-fidelity 0.4, squeezenet1_1 (ImageNet weights 1a2b), 10 splits, half split; "
            "pairs: ddim 50 steps",
        ),
        (
            UNET.having(steps=1000, batch=8, gated=True, size=256, lr=1e-4, max_pairs=100),
            "unet(width 64), half split, pairs past the gate, last checkpoint, 1000 steps x 8, "
            "256 px, lr 0.0001, max_pairs 100",
        ),
        (
            Protocol(
                "ic_lpips", {"library": "timm 1.0", "network": "efficientnet_lite0", "cap": 50}
            ),
            "distance like IC-LPIPS by timm 1.0, efficientnet_lite0, cap 50",
        ),
        (
            COMPARATOR,
            "PatchCore of anomalib 2.7.0 on squeezenet1_1 (ImageNet weights b8a52dc0), half split, "
            "256 px, coreset 0.01",
        ),
        (
            Protocol("mask_agreement", {"neighbours": 8, "size": 32, "shift": 2, "of": "real"}),
            "real pictures of the generator part; AUROC in a picture of the difference to the "
            "nearest 8 normals against the mask, 32 px, shift 2",
        ),
        (
            Protocol("mine", {"n": {"either": [5, 6]}, "sizes": [3, 4], "tail": False}),
            "mine, 5 images per defect type | 6 images per defect type, sizes 3-4, tail false",
        ),
        (UNET.having(split="literal"), "literal split (leaking: its test holds pictures of the"),
    ],
)
def test_a_protocol_in_words(protocol, text):
    assert text in words(protocol)


@pytest.mark.parametrize("protocol", [SQUEEZE, UNET, COMPARATOR], ids=lambda p: p.name)
def test_no_fact_is_dropped_in_silence(protocol):
    assert "unheard of 7" in words(protocol.having(**{"unheard of": 7}))
    for fact in protocol.facts:
        assert words(protocol.having(**{fact: "otherwise"})) != words(protocol), fact
        assert "otherwise" in words(protocol.having(**{fact: "otherwise"})), fact


def test_the_catalogue_and_the_printed_tables_name_the_same_metrics():
    printed = {m for n in published.ROMAN for m in published.read(PUBLISHED, n).metrics}
    assert printed <= set(metrics.catalogue())
    assert not any(metrics.about(name).table for name in printed), "it stands where it is printed"
    assert [m.key for m in metrics.catalogue().values() if not m.higher_is_better] == [
        "gate_failed",
        "redraws",
        "kid",
        "false_alarms",
    ]


def test_many_footnotes_have_marks_of_their_own():
    block = layout.Block(("IS",), [])
    marks = [block.mark(f"protocol {i}", letters=True) for i in range(60)] + [
        block.mark(f"remark {i}") for i in range(3)
    ]
    assert (
        len(set(marks)) == 63
        and marks[:2] == ["a", "b"]
        and marks[26] == "aa"
        and marks[-3:] == ["1", "2", "3"]
    )
    assert block.mark("protocol 1", letters=True) == "b"


def test_escape():
    assert (
        render.escape("Crop&Paste 50% metal_nut ± {x} a\\b")
        == r"Crop\&Paste 50\% metal\_nut $\pm$ \{x\} a\textbackslash{}b"
    )
    assert render.escape("ж") == "?"


@pytest.mark.parametrize("number", [1, 2, 4])
def test_latex(tmp_path, number):
    rows = (
        list(detection())
        if number > 1
        else [
            score("inception_score", 1.4, protocol=SQUEEZE),
            score("ic_lpips", 0.2, method="crop"),
        ]
    )
    _, _, tex = render_table(tmp_path, number, rows)
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{([a-z*]+)\}", tex):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack and tex.replace(r"\{", "").replace(r"\}", "").count("{") == tex.replace(
        r"\{", ""
    ).replace(r"\}", "").count("}")
    assert tex.isascii()
    for body in re.findall(r"\\begin\{tabular\}\{(.*?)\}\n(.*?)\\end\{tabular\}", tex, re.DOTALL):
        width = len(re.sub(r"@\{.*?\}", "", body[0]))
        for line in body[1].splitlines():
            if line.endswith(r"\\"):
                spans = [int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line)]
                assert len(re.findall(r"(?<!\\)&", line)) + 1 + sum(spans) == width, line
    if shutil.which("pdflatex"):
        document = (
            r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
            + tex
            + r"\end{document}"
        )
        (tmp_path / "main.tex").write_text(document, encoding="utf-8")
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"],
            cwd=tmp_path,
            capture_output=True,
        )
        assert done.returncode == 0, done.stdout[-2000:]


def test_wide_tables_are_cut_into_panels_that_can_be_read(tmp_path):
    """Eleven methods and the paper's ten: no panel is wider than the paper's table, each number
    stands in one of them."""
    many = {f"m{i}": {"kind": "crop_paste", "label": f"Method {i}"} for i in range(11)}
    rows = [
        score(metric, 10 * i + k + 0.4, method=f"m{i}")
        for i in range(11)
        for k, metric in enumerate(("pixel_auroc", "pixel_ap"))
    ]
    _, _, tex = render_table(tmp_path, 4, rows, methods=many)
    bodies = re.findall(r"\\begin\{tabular\}\{l(c+)\}\n(.*?)\\end\{tabular\}", tex, re.DOTALL)
    assert [len(shape) for shape, _ in bodies] == [20, 12, 10] and tex.count(r"\begin{table*}") == 1
    published, *measured = (body for _, body in bodies)
    assert (
        "zipper" in published
        and "cable" not in "".join(measured)
        and "published" not in "".join(measured)
    )
    for i in range(11):
        (panel,) = (body for body in measured if rf"Method {i}}}" in body)
        assert f" {10 * i + 0.4} " in panel or f"{{{10 * i + 0.4}}}" in panel


def test_rendering_is_deterministic(tmp_path):
    first = render_table(tmp_path / "a", 4, detection())
    second = render_table(tmp_path / "b", 4, detection())
    assert first == second


def test_the_tables_of_a_smoke_run_are_those_of_protocols_in_words(tmp_path):
    """smoke_run/: scores of config/smoke.yaml, and the measured rows of the tables that were made
    of them when a protocol was a sentence."""
    folder = Path(__file__).with_name("smoke_run")
    run = load(ROOT / "params.yaml", ROOT / "config/smoke.yaml")
    keys = ("report", "prepare.datasets", "train.methods", "train.ablations", "detect.comparators")
    found = []
    for number in (1, 4):
        tables.run(
            number,
            Slice(slice_config(run, keys)),
            published=PUBLISHED,
            scores=[folder / "scores.csv"],
            out=tmp_path,
        )
        with open(tmp_path / f"table_{number}.csv", newline="", encoding="utf-8") as handle:
            found += [row for row in csv.DictReader(handle) if row["measured"]]
    with open(folder / "tables.csv", newline="", encoding="utf-8") as handle:
        expected = list(csv.DictReader(handle))
    numbers = [tuple(row[name] for name in expected[0]) for row in found]
    assert sorted(numbers) == sorted(tuple(row.values()) for row in expected)
    head = next(
        line for line in (tmp_path / "table_4.md").read_text().splitlines() if "| category" in line
    )
    assert head.endswith(
        "measured: DH-Diff <sup>a</sup> | measured: Crop&amp;Paste <sup>b</sup> | "
        "measured: PatchCore (squeezenet1_1 network) <sup>c</sup> |"
    )


def test_average_over_unequal_seeds():
    rows = [
        score("image_auroc", 80.0, seed=0),
        score("image_auroc", 90.0, seed=1),
        score("image_auroc", 95.0, category="cable", seed=0),
    ]
    entries = [
        measured.Measured(
            "MVTec-AD",
            c,
            "DH-Diff",
            "image_auroc",
            UNET,
            {r.seed: r.value for r in rows if r.category == c},
        )
        for c in ("bottle", "cable")
    ]
    average = measured._average(entries)
    assert average.mean == pytest.approx(90) and average.std is None and average.covers == 2
