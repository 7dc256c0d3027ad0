"""The target `prepared`: every raw layout through the workflow, each category on its own and only
when it has changed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import ROOT, Project, fake_mvtec
from PIL import Image

from helixbench.config import load
from helixbench.datasets.procedural.writers import WRITERS
from helixbench.records import Sample, read_csv

OVERLAYS = ("config/mini.yaml", "config/layouts.yaml")
DATASETS = load(ROOT / "params.yaml", *(ROOT / overlay for overlay in OVERLAYS)).prepare.datasets


def test_every_layout_goes_through_the_workflow(project):
    assert {dataset.procedural.layout for dataset in DATASETS.values()} == set(WRITERS)
    result = project.snakemake("prepared", overlays=OVERLAYS)
    assert result.returncode == 0, result.stdout[-6000:]
    for name, dataset in DATASETS.items():
        (category,) = dataset.categories
        prepared = project.root / "results/layouts/prepare" / name / category
        samples = read_csv(prepared / "samples.csv", Sample)
        assert {s.role for s in samples} == {"normal", "generator", "test"}
        assert json.loads((prepared / "split.json").read_text())["rule"] == "half"
        # One line a category says how far it is, and it is known whose.
        assert re.search(
            rf" {name} {category}: {len(samples)} pictures in [\d.]+ s$", result.stdout, flags=re.M
        )
    assert project.plan("prepared", overlays=OVERLAYS) == set()
    changes = {"As-BTAD": {"procedural": {"layout": "folder"}}, "As-MPDD": {"bits": 12}}
    changes["As-MVTec-AD"] = {"without": ["bend"]}
    with_other = project.write("other.yaml", {"prepare": {"datasets": changes}})
    assert project.plan("prepared", overlays=(*OVERLAYS, with_other)) == {
        "Draw the procedural category weave",
        "Prepare As-BTAD weave",
        "Prepare As-MPDD plate",
        "Prepare As-MVTec-AD disc",
        "All categories are prepared",
    }
    other_bits = project.write("bits.yaml", {"prepare": {"datasets": {"As-MPDD": {"bits": 12}}}})
    touched = project.snakemake("prepared", "--touch", overlays=(*OVERLAYS, other_bits))
    assert touched.returncode != 0 and "made with other parameters than these" in touched.stdout


@pytest.fixture
def read(project):
    """Two categories in a tree, and two that share a manifest at the root."""
    fake_mvtec(project.root / "tree", ["gear", "bolt"])
    fake_mvtec(project.root / "listed", ["nut", "pin"])
    colours = iter(range(0, 250, 5))
    for file in sorted(project.root.glob("*/*/t*/*/*.png")):  # no two pictures are the same
        Image.new("RGB", (8, 8), (next(colours), 90, 90)).save(file)
    rows = ["image,mask,defect,split,category"]
    for category in ("nut", "pin"):
        for name in ("train/good/000", "train/good/001", "test/good/000"):
            rows.append(f"{category}/{name}.png,,good,{name.split('/')[0]},{category}")
        for name in ("000", "001"):
            rows.append(
                f"{category}/test/broken/{name}.png,{category}/ground_truth/broken/{name}_mask.png,broken,test,{category}"
            )
    (project.root / "listed/manifest.csv").write_text("\n".join(rows) + "\n")
    datasets = {
        "Tree": {"layout": "mvtec_ad", "root": "tree", "categories": ["gear", "bolt"]},
        "Listed": {"layout": "folder", "root": "listed", "categories": ["nut", "pin"]},
    }
    overlay = project.write(
        "read.yaml",
        {"run": {"name": "read"}, "prepare": {"use": list(datasets), "datasets": datasets}},
    )
    return project, ("config/smoke.yaml", overlay)


def made(project: Project) -> dict[str, int]:
    """When each category was prepared."""
    manifests = (project.root / "results/read/prepare").glob("*/*/manifest.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in manifests}


def test_only_the_changed_category_is_prepared_again(read):
    project, overlays = read
    result = project.snakemake("prepared", overlays=overlays)
    assert result.returncode == 0, result.stdout[-6000:]
    before = made(project)
    assert sorted(before) == ["bolt", "gear", "nut", "pin"]
    for changed in ("tree/gear/train/good/000.png", "listed/nut/test/good/000.png"):
        Image.new("RGB", (8, 8), (9, 250, 9)).save(project.root / changed)
    for touched in (
        "tree/bolt/train/good/000.png",
        "listed/pin/train/good/000.png",
        "listed/manifest.csv",
    ):
        (project.root / touched).touch()
    assert project.snakemake("prepared", overlays=overlays).returncode == 0
    after = made(project)
    assert {name for name in after if after[name] != before[name]} == {"gear", "nut"}


def test_a_leak_stops_the_workflow(read):
    """By content: the copy has another name, another folder and another format."""
    project, overlays = read
    leaking = Path("tree/gear/test/good/another name.bmp")
    Image.open(project.root / "tree/gear/train/good/001.png").save(project.root / leaking)
    alone = project.write(
        "alone.yaml", {"prepare": {"use": ["Tree"], "datasets": {"Tree": {"categories": ["gear"]}}}}
    )
    result = project.snakemake(overlays=(*overlays, alone))
    assert result.returncode != 0 and "Traceback" not in result.stdout
    (line,) = {
        line
        for line in result.stdout.splitlines()
        if line.startswith("helixbench: ") and "the same picture as" in line
    }
    assert (
        f"{leaking}: the same picture as tree/gear/train/good/001.png, which is in training" in line
    )
    assert {path.name for path in (project.root / "results/read").iterdir()} == {"config"}, (
        "nothing is prepared, nothing trained"
    )


def test_a_bad_manifest_stops_before_any_job(read):
    project, overlays = read
    path = project.root / "listed/manifest.csv"
    path.write_text(path.read_text().replace("image,mask", "picture,mask"))
    result = project.snakemake("prepared", overlays=overlays)
    assert (
        result.returncode != 0
        and "Traceback" not in result.stdout
        and "\nJob " not in result.stdout
    )
    assert (
        "helixbench: listed/manifest.csv: column image is missing (there are: picture, mask, "
        "defect, split, category)" in result.stdout
    )
