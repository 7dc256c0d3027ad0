"""What Snakemake would run, and what stops it before it runs anything."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import yaml
from conftest import ROOT, below, fake_mvtec

from helixbench.config import load, overlay
from helixbench.weights import FILES

PAPER = load(ROOT / "params.yaml")
DATASETS = PAPER.prepare.datasets
CATEGORIES = DATASETS["MVTec-AD"].categories
COUNT = sum(len(dataset.categories) for dataset in DATASETS.values())  # 38
METHODS = len(PAPER.train.methods)
COMPARATORS = len(PAPER.detect.comparators)
LEARNERS = sum(hasattr(method, "optim") for method in PAPER.train.methods.values())
ALL, LEARN = COUNT * METHODS, COUNT * LEARNERS
ARMS = 15 * len(PAPER.train.arms)
"""The paper's ablations are on MVTec AD alone."""


@pytest.fixture
def paper(project, monkeypatch):
    """The paper's configuration with something in the place of data and weights."""
    monkeypatch.setenv("TORCH_HOME", str(project.root / "torch"))
    (project.root / "torch/hub/checkpoints").mkdir(parents=True)
    for network in ("inception-v3", "vgg"):
        (project.root / "torch/hub/checkpoints" / FILES[network]).touch()
    fake_data(project.root)
    weights = project.root / PAPER.train.pretrained.path
    weights.mkdir(parents=True)
    (weights / "model_index.json").write_text("{}")
    return project


def fake_data(root) -> None:
    """All of the paper's data sets, as far as a dry run looks at them."""
    for dataset in DATASETS.values():
        fake_mvtec(root / dataset.root, dataset.categories)
    lines = [
        f"{category},{split},{label},{category}/{name},{mask}"
        for category in DATASETS["VisA"].categories
        for split, label, name, mask in (
            ("train", "normal", "train/good/000.png", ""),
            ("test", "normal", "test/good/000.png", ""),
            (
                "test",
                "anomaly",
                "test/broken/000.png",
                f"{category}/ground_truth/broken/000_mask.png",
            ),
        )
    ]
    table = root / DATASETS["VisA"].root / "split_csv/1cls.csv"
    table.parent.mkdir()
    table.write_text("\n".join(["object,split,label,image,mask", *lines]) + "\n")


def only_line(result) -> str:
    """The one line of ours in a run that is stopped before any job."""
    assert result.returncode != 0
    assert not re.search(r"Traceback|^Job |Error|Exception", result.stdout, flags=re.M)
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("helixbench: ")]
    return line


def drawn(jobs: int, shards: int = 1) -> dict[str, int]:
    """Jobs that make the pairs of so many methods and categories."""
    return {"generate": shards * jobs, "gather": jobs}


def test_paper_configuration(paper):
    counts = paper.job_counts()
    planned = re.findall(
        r"^\| `(\w+)` \| ([\d,]+) \|", (ROOT / "docs/scaling.md").read_text(), flags=re.M
    )
    assert (
        len(planned) == 8
        and {rule: int(number.replace(",", "")) for rule, number in planned}.items()
        <= counts.items()
    )
    assert counts == {
        "prepare": 38,
        "train": LEARN + ARMS,
        **drawn(ALL + ARMS),
        "score": ALL,
        "detect": ALL + ARMS,
        "compare": COUNT * COMPARATORS,
        "report_table": 9,
        "report_grid": 5,
        "report_attention": 15,
        "report_plots": 1,
        "report_page": 1,
        "report_numbers": 1,
        "report_summary": 1,
        "classify": 15 * METHODS,
        "segment": 45 * METHODS,
        "all": 1,
    }


def table(categories: int, stage: str, compared: bool = False) -> dict[str, int]:
    """Jobs of a table about so many categories, with or without detectors that learn from normals
    alone."""
    every = categories * METHODS
    jobs = {
        "prepare": categories,
        "train": categories * LEARNERS,
        **drawn(every),
        stage: every,
        "report_table": 1,
    }
    return jobs | {"compare": categories * COMPARATORS} if compared else jobs


@pytest.mark.parametrize(
    "target, expected",
    [
        ("prepared", {"prepare": 38}),
        ("models", {"prepare": 38, "train": LEARN + ARMS}),
        ("table_1", table(15, "score")),
        ("table_3", table(6, "detect")),
        ("table_4", table(15, "detect", compared=True)),
        ("table_6", table(12, "detect", compared=True)),
        ("table_7", table(5, "detect", compared=True)),
        ("table_8", {"prepare": 15, "train": 75, **drawn(75), "detect": 75, "report_table": 1}),
        ("table_9", {"prepare": 15, "train": 75, **drawn(75), "detect": 75, "report_table": 1}),
        ("figure_1", {"prepare": 15, "train": 15, "report_control": 15}),
        ("figure_3", {"prepare": 15, "train": 30, "report_attention": 15}),
        ("figure_6", {"prepare": 6, "train": 6 * LEARNERS, **drawn(6 * METHODS), "report_grid": 1}),
        ("figure_9", {"prepare": 15, "train": 75, **drawn(75), "report_grid": 1}),
        ("comparison", {"prepare": 38, "compare": COUNT * COMPARATORS}),
        (
            "classification",
            {
                "prepare": 15,
                "train": 15 * LEARNERS,
                **drawn(15 * METHODS),
                "classify": 15 * METHODS,
            },
        ),
        (
            "segmentation",
            {"prepare": 15, "train": 15 * LEARNERS, **drawn(15 * METHODS), "segment": 45 * METHODS},
        ),
    ],
)
def test_named_targets(paper, target, expected):
    assert paper.job_counts(target) == {**expected, target: 1}


def test_a_scratch_base_is_trained_and_an_overlay_takes_a_data_set_out(project):
    counts = project.job_counts("models", "base", overlays=("config/smoke.yaml",))
    assert counts == {"draw": 1, "prepare": 1, "build_base": 1, "train": 1, "models": 1, "base": 1}


def test_a_joint_base_is_one_for_all_and_needs_no_data_unless_it_learns_from_them(project):
    told = project.snakemake("-n", "base", overlays=("config/base.yaml",))
    assert told.returncode and "data/textures: no pictures; write" in told.stdout
    assert "train.joint.photos" in told.stdout and "Traceback" not in told.stdout
    texture = project.root / "data/textures/a.png"
    texture.parent.mkdir(parents=True)
    texture.write_bytes(b"one")
    counts = project.job_counts("base", overlays=("config/base.yaml",))
    assert counts == {"joint_base": 1, "base": 1}
    known = project.root / "results/base/config/joint_photos.json"
    before = known.read_text()
    texture.write_bytes(b"two")  # as long
    going_on = project.write("on.yaml", {"train": {"joint": {"start": "models/none"}}})
    told = project.snakemake("-n", "base", overlays=("config/base.yaml", going_on))
    assert told.returncode and "models/none: no model_index.json; name" in told.stdout
    assert known.read_text() != before, "the input of the rule, so that it runs again"
    page = (ROOT / "docs/base.md").read_text(encoding="utf-8")
    overlay = project.write(
        "own.yaml", yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.S)[1])
    )
    counts = project.job_counts("models", overlays=("config/mini.yaml", overlay))
    assert counts == {"draw": 2, "prepare": 2, "joint_base": 1, "train": 2, "models": 1}


@pytest.mark.parametrize("cores", ["1", "16"])
def test_the_threads_that_numbers_depend_on_are_those_of_the_configuration(project, cores):
    told = project.snakemake(
        "tables", "-n", "-p", "--cores", cores, overlays=("config/mini.yaml",)
    ).stdout
    threads = re.findall(r"helixbench (\w+) .*--threads (\d+)", told)
    assert {"train", "generate", "score", "detect", "compare"} <= {name for name, _ in threads}
    assert {(name, n) for name, n in threads if name != "base"} == {
        (name, "2") for name, _ in threads if name != "base"
    }


def test_the_base_of_the_package_needs_neither_a_download_nor_a_training(project):
    overlay = project.write("embedded.yaml", {"train": {"base": "embedded"}})
    counts = project.job_counts("models", overlays=("config/smoke.yaml", overlay))
    assert counts == {"draw": 1, "prepare": 1, "train": 1, "models": 1}


def test_a_method_that_does_not_learn_needs_no_model(project):
    overlay = project.write("only.yaml", {"train": {"use": ["crop_paste"]}})
    counts = project.job_counts("pairs", overlays=("config/smoke.yaml", overlay))
    assert counts == {"draw": 1, "prepare": 1, **drawn(1), "pairs": 1}


def test_shards_are_jobs(project):
    overlay = project.write("shards.yaml", {"run": {"shards": 5}, "train": {"use": ["crop_paste"]}})
    counts = project.job_counts("pairs", overlays=("config/smoke.yaml", overlay))
    assert counts == {"draw": 1, "prepare": 1, **drawn(1, shards=5), "pairs": 1}


def test_missing_scoring_weights_are_one_line_before_any_job(paper):
    (paper.root / "torch/hub/checkpoints" / FILES["vgg"]).unlink()
    line = only_line(paper.snakemake())
    assert FILES["vgg"] in line and "helixbench fetch weights vgg" in line


@pytest.mark.parametrize("target", ["fetch_base", "fetch_weights"])
def test_what_is_missing_can_be_fetched(project, target):
    """The check that stops every other target lets these through."""
    assert project.job_counts(target) == {target: 1}


def test_missing_data_is_one_line_before_any_job(project):
    line = only_line(project.snakemake("prepared"))
    assert "data/mvtec_ad/bottle" in line
    assert "prepare.datasets.MVTec-AD.root" in line
    assert not (project.root / "results/paper/prepare").exists()


def test_a_run_needs_the_data_that_it_uses(paper):
    shutil.rmtree(paper.root / "data/visa")
    assert "data/visa" in only_line(paper.snakemake("prepared"))
    overlay = paper.write("one.yaml", {"prepare": {"use": ["MVTec-AD"]}})
    assert paper.job_counts("prepared", overlays=(overlay,)) == {"prepare": 15, "prepared": 1}
    overlay = paper.write("typo.yaml", {"prepare": {"use": ["MVTec"]}})
    line = only_line(paper.snakemake(overlays=(overlay,)))
    assert "use names 'MVTec', which is not in datasets (MVTec-AD, MPDD, VisA, MVTec-LOCO)" in line


def test_missing_weights_are_one_line_before_any_job(project):
    fake_data(project.root)
    for target in ("models", "base"):
        line = only_line(project.snakemake(target))
        assert line.startswith("helixbench: models/stable-diffusion-v1-5")
        assert "train.pretrained.path" in line


def test_a_stage_asks_only_for_what_its_jobs_need(project):
    """No base model and no weights are here: pictures can be prepared all the same, and detectors
    that start from nothing planned."""
    fake_data(project.root)
    none = project.write(
        "none.yaml", {"detect": {"comparators": {"patchcore": {"weights": "none"}}}}
    )
    assert project.job_counts("prepared") == {"prepare": 38, "prepared": 1}
    patchcore = "results/paper/detect/patchcore/VisA/candle/seed0/scores.csv"
    shutil.rmtree(project.root / "data/mvtec_ad")
    assert project.job_counts(patchcore, overlays=(none,)) == {"prepare": 1, "compare": 1}


@pytest.mark.parametrize(
    "values, key",
    [
        (
            {"train": {"methods": {"dhdiff": {"optim": {"stepz": 3}}}}},
            "train.methods.dhdiff.optim.stepz",
        ),
        ({"generate": {"pairs": 0}}, "generate.pairs"),
        ({"detect": {"localization": {"optim": {"lr": "fast"}}}}, "detect.localization.optim.lr"),
        ({"prepare": {"size": 100}}, "prepare.size"),
        ({"sampling": {"steps": 3}}, "sampling"),
        (
            {"train": {"use": ["base"], "methods": {"base": {"kind": "crop_paste"}}}},
            "train.methods",
        ),
    ],
)
def test_a_wrong_key_or_value_is_one_line_with_its_full_name(project, values, key):
    overlay = project.write("wrong.yaml", values)
    line = only_line(project.snakemake(overlays=("config/smoke.yaml", overlay)))
    assert f" {key}: " in line
    assert not (project.root / "results").exists()


def test_configuration_slices_hold_their_keys_only_and_keep_their_time(project):
    folder = project.root / "results/smoke/config"
    project.job_counts(overlays=("config/smoke.yaml",))
    score = folder / "score.json"
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*.json")}
    assert set(json.loads(score.read_text())) == {"run.seed", "run.threads", "score"}
    overlay = project.write("score.yaml", {"score": {"ic_lpips": {"cap": 7}}})
    project.job_counts(overlays=("config/smoke.yaml", overlay))
    after = {file: file.stat().st_mtime_ns for file in folder.rglob("*.json")}
    assert {file for file in after if before[file] != after[file]} == {score}


def test_overlays_hold_differences_only():
    def values(file):
        return yaml.safe_load(file.read_text())

    def same(below, above, path=()):
        for key, value in above.items():
            if isinstance(value, dict) and isinstance(below.get(key), dict):
                yield from same(below[key], value, (*path, key))
            elif key in below and below[key] == value:
                yield ".".join((*path, key))

    for file in (ROOT / "config").glob("*.yaml"):
        under = values(ROOT / "params.yaml")
        for lower in below(file):
            under = overlay(under, values(lower))
        assert list(same(under, values(file))) == [], file.name


@pytest.mark.parametrize("profile", ["slurm", "kubernetes"])
def test_profiles_of_clusters_plan_what_the_default_plans(project, profile):
    chosen = ("--workflow-profile", f"profiles/{profile}", "all", "gpu_check")
    expected = project.job_counts("all", "gpu_check", overlays=("config/smoke.yaml",))
    assert (
        expected["gpu_check"] == 1
        and project.job_counts(*chosen, overlays=("config/smoke.yaml",)) == expected
    )


def test_the_slurm_profile_sends_what_needs_a_gpu_where_the_gpus_are():
    rules = "".join(file.read_text() for file in (ROOT / "workflow/rules").glob("*.smk"))
    need = {
        name: int(gpu)
        for name, gpu in re.findall(
            r"^rule (\w+):(?:(?!^rule ).)*?\bgpu=(\d)", rules, flags=re.M | re.S
        )
    }
    profile = yaml.safe_load((ROOT / "profiles/slurm/profile.yaml").read_text())
    assert {rule for rule, gpu in need.items() if gpu} == {
        rule
        for rule, values in profile["set-resources"].items()
        if values["slurm_partition"] == "gpu"
    }
    assert profile["default-resources"]["slurm_partition"] == "cpu"


def test_called_from_another_directory_it_says_so(project, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    files = ["-s", project.root / "Snakefile", "--configfile", project.root / "config/smoke.yaml"]
    told = project.run("snakemake", "-n", "--cores", "1", "-d", str(folder), *map(str, files))
    assert told.returncode and f"helixbench: {folder}: no params.yaml here;" in told.stdout
