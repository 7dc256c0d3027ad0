"""The smoke configuration through the real Snakemake: one drawn data set, one that is read from a
folder."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import shutil
import subprocess
import zipfile

import pytest
from conftest import Project, fake_mvtec
from PIL import Image

from helixbench.errors import UserError
from helixbench.records import Pair, Score, read_csv
from helixbench.report import verify

METHODS = ("dhdiff", "crop_paste")
CATEGORIES = (("Procedural", "disc"), ("MVTec-AD", "weave"))
OVERLAYS = ("config/smoke.yaml", "e2e.yaml")
SIZES = {"size": 40, "train_good": 4, "test_good": 2, "per_defect": 2}
TWO_AT_ONCE = ["--resources", "gpu=2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Project:
    """A project after one run of everything."""
    project = Project(tmp_path_factory.mktemp("end_to_end") / "project")
    slice_of_draw = project.root / "draw.json"
    slice_of_draw.write_text(json.dumps({"run.seed": 1, "prepare.datasets.Any.procedural": SIZES}))
    drawn = project.run(
        "helixbench", "draw", "Any", "weave", "--config", slice_of_draw.name, "--out", "raw"
    )
    assert drawn.returncode == 0, drawn.stdout
    project.write(
        "e2e.yaml",
        {
            "run": {"name": "e2e"},
            "prepare": {
                "use": ["Procedural", "MVTec-AD"],
                "datasets": {
                    "Procedural": {"categories": ["disc"], "procedural": SIZES},
                    "MVTec-AD": {"layout": "mvtec_ad", "root": "raw", "categories": ["weave"]},
                },
            },
        },
    )
    result = project.snakemake(*TWO_AT_ONCE, overlays=OVERLAYS)
    assert result.returncode == 0, result.stdout[-6000:]
    return project


def test_every_stage_leaves_its_files(finished):
    run = finished.root / "results/e2e"
    for dataset, category in CATEGORIES:
        for name in ("samples.csv", "split.json", "sheet.png", "manifest.json"):
            assert (run / "prepare" / dataset / category / name).is_file()
        for method in ("base", "dhdiff"):
            assert (run / "train" / method / dataset / category / "manifest.json").is_file()
        for method in METHODS:
            with open(
                run / "generate" / method / dataset / category / "manifest.csv", newline=""
            ) as handle:
                pairs = list(csv.DictReader(handle))
            types = {pair["defect"] for pair in pairs}
            assert len(pairs) == 4 * len(types) and len(types) >= 3
            for pair in pairs:
                for file in (pair["image"], pair["mask"]):
                    with Image.open(
                        run / "generate" / method / dataset / category / file
                    ) as picture:
                        assert picture.size == (32, 32)
            assert (run / "score" / method / dataset / f"{category}.csv").is_file()
            for name in ("scores.csv", "predictions.png", "manifest.json"):
                assert (run / "detect" / method / dataset / category / "seed0" / name).is_file()
    for dataset, _ in CATEGORIES:
        assert (run / "report" / f"figure_5_{dataset}.png").is_file()


def test_verify_tells_every_loss_and_every_change(finished, tmp_path, capsys):
    whole = finished.root / "results/e2e"
    verify.run(whole)
    assert re.match(r"\d+ jobs, \d+ files, \d+ pairs: all as recorded\n", capsys.readouterr().out)
    disc = "Procedural/disc"
    first = read_csv(whole / f"generate/crop_paste/{disc}/manifest.csv", Pair)[0]
    changes = {
        f"generate/crop_paste/{disc}/{first.mask}": "missing or altered",
        f"prepare/{disc}/samples.csv": "missing or altered",
        f"train/dhdiff/{disc}/dhdiff.safetensors": "missing or altered",
        f"detect/dhdiff/{disc}/seed0/scores.csv": "missing or altered",
        f"detect/crop_paste/{disc}/seed0/manifest.json": "missing",
        f"score/crop_paste/{disc}.csv": "missing",
    }
    for how in ("removed", "altered"):
        for name, line in changes.items():
            if how == "altered" and line == "missing":
                continue
            copy = tmp_path / "copy"
            shutil.copytree(whole, copy)
            if how == "removed":
                (copy / name).unlink()
            else:
                content = bytearray((copy / name).read_bytes())
                content[-2] ^= 1
                (copy / name).write_bytes(content)
            with pytest.raises(UserError) as caught:
                verify.run(copy)
            told = [text for text in str(caught.value).splitlines() if f"/{name}: " in text]
            assert told and line in told[0], (how, name, str(caught.value))
            shutil.rmtree(copy)
    shutil.copytree(whole, tmp_path / "copy")
    manifest = tmp_path / f"copy/detect/dhdiff/{disc}/seed0/manifest.json"
    manifest.write_text(manifest.read_text().replace('"run.seed": 0', '"run.seed": 1'))
    with pytest.raises(UserError, match=r"its configuration was altered"):
        verify.run(tmp_path / "copy")


def test_every_score_row_says_which_split_it_is_from(finished):
    run = finished.root / "results/e2e"
    for dataset, category in CATEGORIES:
        split = json.loads((run / "prepare" / dataset / category / "split.json").read_text())
        for method in METHODS:
            detected = run / "detect" / method / dataset / category / "seed0/scores.csv"
            rows = [
                row
                for file in (run / "score" / method / dataset / f"{category}.csv", detected)
                for row in read_csv(file, Score)
            ]
            assert {(row.split, row.split_sha256) for row in rows} == {
                (split["rule"], split["sha256"])
            }
            assert {"inception_score", "ic_lpips", "pixel_auroc"} <= {row.metric for row in rows}


@pytest.mark.parametrize(
    "number, metrics",
    [
        (1, {"IS", "IC-LPIPS"}),
        (2, {"image_auroc", "pixel_auroc"}),
        (4, {"pixel_auroc", "pixel_ap"}),
    ],
)
def test_tables_hold_published_and_measured_numbers(finished, number, metrics):
    report = finished.root / "results/e2e/report"
    with open(report.parent / f"tables/table_{number}.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == [
        "table",
        "dataset",
        "category",
        "method",
        "metric",
        "published",
        "recomputed",
        "measured",
        "protocol",
    ]
    assert any(row["published"] and row["category"] == "bottle" for row in rows)
    measured = {(row["dataset"], row["category"], row["metric"]) for row in rows if row["measured"]}
    for dataset, category in CATEGORIES:
        for metric in metrics:
            assert (dataset, category, metric) in measured
    assert all(row["protocol"] for row in rows if row["measured"])
    for suffix in ("tex", "md"):
        assert "DH-Diff" in (report.parent / f"tables/table_{number}.{suffix}").read_text()


def test_numbers_and_summary_are_those_of_the_tables(finished, tmp_path):
    report = finished.root / "results/e2e/report"
    with open(report.parent / "tables/table_4.csv", newline="") as handle:
        rows = [
            row for row in csv.DictReader(handle) if row["measured"] and row["metric"] == "pixel_ap"
        ]
    text = (report.parent / "tables/numbers.tex").read_text()
    summary = json.loads((report.parent / "summary.json").read_text())
    for row in rows:
        name = (
            "/".join(row[key] for key in ("table", "dataset", "category", "method", "metric"))
            + "/measured"
        )
        assert rf"\detokenize{{{name}}}\endcsname{{{float(row['measured']):.1f}}}" in text
        if row["category"] == "average":
            assert summary[row["dataset"]][row["method"]]["pixel_ap"] == pytest.approx(
                float(row["measured"]), rel=1e-4
            )
    assert r"IV/MVTec-AD/average/DH-Diff/pixel_ap/published}\endcsname{86.4}" in text
    if shutil.which("pdflatex"):
        for body, fine in (
            (r"\hbnum{IV/MVTec-AD/average/DH-Diff/pixel_ap/published}", True),
            (r"\hbnum{IV/nothing}", False),
        ):
            (tmp_path / "main.tex").write_text(
                rf"\documentclass{{article}}\input{{{report.parent}/tables/numbers.tex}}\begin{{document}}{body}\end{{document}}"
            )
            command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
            assert (
                subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
            ) == fine


def test_plots_are_there_and_large_enough_to_read(finished):
    report = finished.root / "results/e2e/report"
    names = [
        "overview",
        "training",
        "cost",
        *(f"{kind}_{dataset}" for kind in ("detector", "masks") for dataset, _ in CATEGORIES),
    ]
    for name in names:
        assert (report / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        with Image.open(report / f"{name}.png") as picture:
            assert (
                picture.width >= 1400 and len(picture.convert("L").getcolors(256) or range(99)) > 20
            ), name
    with open(report / "cost.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert {row["stage"] for row in rows} == {"prepare", "train", "generate", "detect"} and all(
        float(row["wall_s"]) > 0 for row in rows
    )
    for method in METHODS:
        file = finished.root / f"results/e2e/detect/{method}/Procedural/disc/seed0/curves.csv"
        with open(file, newline="") as handle:
            curves = {}
            for row in csv.DictReader(handle):
                curves.setdefault(row["curve"], []).append((float(row["x"]), float(row["y"])))
        assert set(curves) == {"image_roc", "image_pr", "pixel_roc", "pixel_pr", "pro"}
        with open(file.with_name("scores.csv"), newline="") as handle:
            scores = {
                row["metric"]: float(row["value"])
                for row in csv.DictReader(handle)
                if row["defect"] == "all"
            }
        for curve, metric in (("image_roc", "image_auroc"), ("pixel_roc", "pixel_auroc")):
            area = sum(
                (b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(curves[curve])
            )
            assert 100 * area == pytest.approx(scores[metric], abs=1)


def test_the_page_needs_no_network_and_its_filters_work(finished, tmp_path):
    page = finished.root / "results/e2e/report/index.html"
    text = page.read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text) and "http" not in re.sub(
        r"base64,[\w+/=]+", "", text
    )
    pictures = json.loads(
        re.search(
            r'<script type="application/json" id="pictures">(.*?)</script>', text, flags=re.S
        )[1]
    )
    assert {p["m"] for p in pictures} == {"real", "DH-Diff", "Crop&Paste"} and {
        p["c"] for p in pictures
    } == {"disc", "weave"}
    for number in (1, 2, 3, 4, 5, 6, 7):
        assert f"<h3>Table {['I', 'II', 'III', 'IV', 'V', 'VI', 'VII'][number - 1]}:" in text
    browser = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if browser is None:
        pytest.skip("no Chromium here to look at the page with")
    script = (
        "<script>document.getElementById('filter-m').value='real';"
        "document.getElementById('filter-m').onchange();</script></body>"
    )
    filtered = tmp_path / "filtered.html"
    filtered.write_text(text.replace("</body>", script))
    own = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr",
    ]
    for file, words in ((page, "DH-Diff"), (filtered, "real")):
        shot = [
            *own,
            "--window-size=1240,3000",
            "--virtual-time-budget=3000",
            "--dump-dom",
            file.as_uri(),
        ]
        done = subprocess.run([browser, *shot], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and "CONSOLE" not in done.stderr, done.stderr[-2000:]
        captions = re.findall(r"<span[^>]*>([^<]*·[^<]*)</span>", done.stdout)
        assert captions and any(words in caption for caption in captions)
        assert file == page or all(caption.startswith("real ·") for caption in captions)
    subprocess.run(
        [
            browser,
            *own,
            "--window-size=1240,3000",
            f"--screenshot={tmp_path / 'page.png'}",
            page.as_uri(),
        ],
        timeout=120,
        check=True,
    )
    with Image.open(tmp_path / "page.png") as picture:
        assert len(picture.convert("L").getcolors()) > 50


def test_snakemake_s_own_report_holds_tables_figures_and_captions(finished):
    result = finished.snakemake("--report", "report.zip", overlays=OVERLAYS)
    assert result.returncode == 0, result.stdout[-3000:]
    with zipfile.ZipFile(finished.root / "report.zip") as archive:
        names = {name.rsplit("/", 1)[-1] for name in archive.namelist()}
        text = "".join(
            archive.read(name).decode(errors="replace")
            for name in archive.namelist()
            if name.endswith((".html", ".js"))
        )
    assert {
        "table_4.csv",
        "figure_5_Procedural.png",
        "overview.png",
        "index.html",
        "predictions.png",
    } <= names
    for words in (
        "Pairs of every method",
        "the mean of its rows",
        "Held-out real pictures",
        "Plots",
    ):
        assert words in text


def test_every_job_is_logged_and_measured(finished):
    logs = finished.root / "logs/e2e"
    for rule in (
        "draw",
        "prepare",
        "build_base",
        "train",
        "generate",
        "score",
        "detect",
        "report_table",
        "report_grid",
    ):
        assert list((logs / rule).rglob("*.log"))
        measured = list((logs / rule).rglob("*.tsv"))
        assert measured
        for file in measured:
            assert file.read_text().startswith("s\th:m:s\tmax_rss")


def test_a_second_run_does_nothing(finished):
    assert finished.plan(overlays=OVERLAYS) == set()
    assert "Nothing to be done" in finished.snakemake(overlays=OVERLAYS).stdout


def test_another_number_of_shards_makes_nothing_run_again_and_the_same_pairs(finished):
    assert (
        finished.plan(overlays=(*OVERLAYS, finished.write("shards.yaml", {"run": {"shards": 3}})))
        == set()
    )
    again = finished.write(
        "again.yaml",
        {"run": {"name": "sharded", "shards": 3}, "train": {"use": ["crop_paste"]}},
    )
    result = finished.snakemake("pairs", overlays=(*OVERLAYS, again))
    assert result.returncode == 0 and "part 3/3" in result.stdout, result.stdout[-3000:]
    for dataset, category in CATEGORIES:
        one, three = (
            finished.root / "results" / run / "generate/crop_paste" / dataset / category
            for run in ("e2e", "sharded")
        )
        files = [
            str(file.relative_to(one)) for file in one.rglob("*") if file.suffix in (".png", ".csv")
        ]
        assert len(files) > 4 and all(
            (one / file).read_bytes() == (three / file).read_bytes() for file in files
        )
    assert not list((finished.root / "scratch/sharded/generate").rglob("*.json*")), (
        "temporary records and blocks stay"
    )


def test_a_lost_snakemake_folder_reruns_nothing(finished):
    own = finished.root / ".snakemake"
    aside = finished.root / "aside"
    shutil.move(own, aside)
    try:
        assert finished.plan(overlays=OVERLAYS) == set()
    finally:
        shutil.rmtree(own)
        shutil.move(aside, own)


def test_a_changed_picture_reruns_its_category_only(finished):
    picture = sorted((finished.root / "raw/weave/train/good").glob("*.png"))[0]
    original = picture.read_bytes()
    os.utime(picture)
    assert finished.plan(overlays=OVERLAYS) == set()
    Image.open(picture).rotate(90).save(picture)
    try:
        planned = finished.plan(overlays=OVERLAYS)
    finally:
        picture.write_bytes(original)
    assert "Prepare MVTec-AD weave" in planned
    assert "Build the base model of MVTec-AD weave" in planned
    assert not [job for job in planned if "disc" in job or "Procedural" in job]
    assert finished.plan(overlays=OVERLAYS) == set()


def test_a_changed_score_reruns_scores_and_what_shows_them_only(finished):
    overlay = finished.write("score.yaml", {"score": {"ic_lpips": {"cap": 3}}})
    assert finished.plan(overlays=(*OVERLAYS, overlay)) == {
        *(
            f"Score {method} on {dataset} {category}"
            for method in METHODS
            for dataset, category in CATEGORIES
        ),
        "Render table 1",
        "Draw results, training, cost, detectors and masks",
        "Write every number of the tables as a LaTeX macro",
        "Write the averages of all scores",
        "Write the HTML page",
        "Tables are in results/e2e/tables, figures in results/e2e/report; the page is "
        "results/e2e/report/index.html",
    }
    assert finished.plan(overlays=OVERLAYS) == set()


def test_a_changed_report_renders_again_and_computes_nothing(finished):
    overlay = finished.write("report.yaml", {"report": {"grid_columns": 3}})
    result = finished.snakemake(overlays=(*OVERLAYS, overlay))
    assert result.returncode == 0, result.stdout[-6000:]
    assert not [
        rule
        for rule in ("Train", "Score", "Detect", "Generate", "Prepare", "Draw the procedural")
        if f": {rule} " in result.stdout
    ]
    assert finished.plan(overlays=(*OVERLAYS, overlay)) == set()


def test_a_failed_job_fails_the_run_with_one_line(project):
    """Output is piped through tee, which must not hide the failure."""
    fake_mvtec(project.root / "raw", ["gear"])
    mask = project.root / "raw/gear/ground_truth/broken/001_mask.png"
    mask.unlink()
    overlay = project.write(
        "bad.yaml",
        {
            "run": {"name": "bad"},
            "prepare": {
                "use": ["Mine"],
                "datasets": {"Mine": {"layout": "mvtec_ad", "root": "raw", "categories": ["gear"]}},
            },
        },
    )
    result = project.snakemake("prepared", overlays=("config/smoke.yaml", overlay))
    assert result.returncode != 0
    assert "Traceback" not in result.stdout
    assert [
        line
        for line in result.stdout.splitlines()
        if line.startswith("helixbench: ") and "001_mask.png" in line
    ], result.stdout
    assert not (project.root / "results/bad/prepare/Mine/gear").exists()
