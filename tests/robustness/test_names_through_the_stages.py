"""Any name of a defect that a file system allows goes through all six stages, or is refused by
`import` and `prepare` alike.
"""

from __future__ import annotations

import html.parser
import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from helixbench.config import Slice, overlay, slice_config, validate
from helixbench.datasets.layout import Layout, refused
from helixbench.datasets.problems import Problems
from helixbench.detect.detector import Job
from helixbench.detect.localization import Localization
from helixbench.errors import UserError
from helixbench.generate import stage as generate
from helixbench.prepare import importing
from helixbench.prepare import stage as prepare
from helixbench.records import Pair, Sample, Score, read_csv
from helixbench.report import grid, latex_numbers, page, plots, summary, tables
from helixbench.score import stage as score

ROOT = Path(__file__).parents[2]
KNOWN = ["裂纹", "a_b#1", "crack & dent 50%", "<i>x $y$ {z}", "<!--<script>", "a__BODY__", "real"]
KNOWN += [
    r"\input{x}",
    r"a$\frac{$",
    "x" * 240,
    "a.b c",
    "Prüfung",
    "-n",
    "CON",
    " ",
    "~^",
    "a,b\"c'",
    "None",
]
PLACES = ("Data", "gear")
LABEL = "50 % <paste> $x$ & {y}"


def may_be_a_folder(name: str) -> bool:
    stored = len(unicodedata.normalize("NFC", name).encode("utf-8", "surrogatepass")) <= 240
    return stored and not name.startswith(".") and name not in ("good", "@eaDir")


NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=60
).filter(may_be_a_folder)


def tree(root: Path, names: list[str]) -> Path:
    """A category with three pictures of each defect type."""
    rng = np.random.default_rng(0)

    def save(file: Path, array: np.ndarray) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(file)

    def picture() -> np.ndarray:
        return rng.normal(120, 12, (32, 32, 3)).clip(0, 255).astype(np.uint8)

    category = root / "gear"
    for i in range(4):
        save(category / f"train/good/{i}.png", picture())
        save(category / f"test/good/{i}.png", picture())
    for name in names:
        for i in range(3):
            mask = np.zeros((32, 32), np.uint8)
            mask[8 + i : 16, 8:20] = 255
            save(category / "test" / name / f"{i}.png", picture())
            save(category / "ground_truth" / name / f"{i}_mask.png", mask)
    return root


@pytest.fixture(scope="module")
def config():
    """The smoke configuration with Crop&Paste alone, which calls itself by an odd label."""
    values: dict = {}
    for file in ("params.yaml", "config/smoke.yaml"):
        values = overlay(values, yaml.safe_load((ROOT / file).read_text(encoding="utf-8")))
    dataset = {"layout": "mvtec_ad", "root": "raw", "categories": ["gear"]}
    changes = {
        "prepare": {"use": ["Data"], "datasets": {"Data": dataset}},
        "train": {"use": ["crop_paste"], "methods": {"crop_paste": {"label": LABEL}}},
        "generate": {"pairs": 2, "gate": {"redraws": 0}},
        "detect": {"use": [], "localization": {"optim": {"steps": 2}}},
    }
    values = overlay(values, changes)

    def part(*keys: str) -> Slice:
        return Slice(json.loads(json.dumps(slice_config(validate(values), keys))))

    return part


def refusal(call) -> str:
    """The first line of a UserError; empty where there is none."""
    try:
        call()
    except UserError as error:
        return str(error).splitlines()[0]
    return ""


class _Parts(html.parser.HTMLParser):
    """Ids of the sections and the number of scripts, as a browser finds them."""

    def __init__(self):
        super().__init__()
        self.sections, self.scripts = [], 0

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        if tag == "section":
            self.sections.append(dict(attributes)["id"])


def through(folder: Path, names: list[str], config) -> None:
    """All six stages on these names, and what must be in their files."""
    root, run = tree(folder / "raw", names), folder / "run"
    wanted = {unicodedata.normalize("NFC", name) for name in names}
    prepared, pairs = run / "prepare/Data/gear", run / "generate/crop_paste/Data/gear"
    keys = ("prepare.size", "prepare.split", "prepare.raw_mask_cells")
    prepare.run(*PLACES, config(*keys), layout="mvtec_ad", raw=root, out=prepared)
    assert {s.defect for s in read_csv(prepared / "samples.csv", Sample)} == {*wanted, "good"}

    one = ("crop_paste", *PLACES)
    keys = ("run.seed", "generate", "train.methods.crop_paste")
    places = {"prepared": prepared, "model": None, "state": folder / "state", "out": pairs}
    generate.run(*one, config(*keys), **places)
    assert {p.defect for p in read_csv(pairs / "manifest.csv", Pair)} == wanted

    scores = [run / "score/crop_paste/Data/gear.csv", run / "detect/crop_paste/Data/gear/seed0"]
    score.run(*one, config("run.seed", "score"), prepared=prepared, pairs=pairs, out=scores[0])
    job = Job(*one, 0, prepared, pairs, folder / "detect.state", scores[1])
    Localization(job, config("run.seed", "detect.localization")).run()
    scores[1] /= "scores.csv"
    for file in scores:
        assert {row.defect for row in read_csv(file, Score)} == {*wanted, "all"}

    keys = ("report", "train.methods", "train.ablations", "prepare.datasets")
    values, published = config(*keys, "detect", "detect.comparators"), ROOT / "resources/published"
    for number in (1, 4):
        tables.run(number, values, published=published, scores=scores, out=run / "tables")
    latex_numbers.run(sorted((run / "tables").glob("*.csv")), run / "tables/numbers.tex")
    for line in (run / "tables/numbers.tex").read_text(encoding="utf-8").splitlines():
        key = re.match(r"\\expandafter\\def\\csname hb@\\detokenize\{(.*?)\}\\endcsname\{", line)
        assert not line.startswith("\\expandafter") or not re.search(r"[\\{}%#]", key[1]), line
    grid.run("Data", values, results=run, out=folder / "grid.png")
    plots.run(values, results=run, scores=scores, published=published, out=folder / "plots")
    summary.run(values, scores=scores, out=folder / "summary.json")
    fragments = sorted((run / "tables").glob("*.html"))
    page.run(values, results=run, tables=fragments, figures=[], out=folder / "index.html")
    text, found = (folder / "index.html").read_text(encoding="utf-8"), _Parts()
    found.feed(text)
    assert found.sections == ["tables", "figures", "pairs", "gate", "provenance"]
    assert found.scripts == 2
    data = re.search(r'type="application/json"[^>]*>(.*?)</script>', text, re.S)[1]
    assert "<" not in data  # a browser would end the script, or begin a comment in it
    rows = json.loads(data)
    assert {row["t"] for row in rows} == wanted and {row["m"] for row in rows} == {"real", LABEL}


@settings(
    max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(NAMES, min_size=3, max_size=6))
def test_names_go_through_all_stages_or_are_refused_alike(tmp_path_factory, config, names):
    folder, accepted = tmp_path_factory.mktemp("names"), {}
    for name in (*KNOWN, *names):
        key = unicodedata.normalize("NFC", name)
        if not refused(key):
            accepted.setdefault(key, name)
            continue
        root = tree(folder / f"refused{len(list(folder.iterdir()))}", [name])
        problems = Problems(collect=True)
        lines = [
            refusal(lambda: importing.run("mvtec_ad", root)),  # noqa: B023
            refusal(lambda: Layout.named("mvtec_ad").read(root, *PLACES)),  # noqa: B023
        ]
        Layout.named("mvtec_ad").read(root, *PLACES, problems)
        assert lines[0] and lines[1] and problems.lines, name
        assert all(line.isprintable() for line in lines), lines
    through(folder / "accepted", list(accepted.values()), config)
