"""docs/plant.md as its reader follows it: its commands, in a project, at the smallest size."""

from __future__ import annotations

import csv
import re
import shlex
import shutil

import yaml
from conftest import ROOT, Project

from helixbench.config import overlay
from helixbench.datasets.procedural import render
from helixbench.schema import Procedural

PAGE = (ROOT / "docs/plant.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.S)
CHECK, TRAIN, PREDICT, EXPORT, EXAMPLE = [
    shlex.split(line) for block in BLOCKS for line in block.strip().splitlines()
]
SMALL = {
    "run": {"threads": 1},
    "prepare": {"size": 32},
    # DH-Diff from the embedded base is planned below; its training is tested elsewhere.
    "train": {"use": ["crop_paste"]},
    "generate": {"pairs": 4},
    "score": {"inception_score": {"network": "random"}, "ic_lpips": {"network": "random"}},
    "detect": {"false_alarms": 0.2, "localization": {"width": 4, "optim": {"steps": 3}}},
}


def test_the_page_leads_from_pictures_to_verdicts(project: Project):
    mydata, new = project.root / "mydata", project.root / "new"
    sizes = Procedural(size=48, train_good=20, test_good=3, per_defect=4)
    render.draw(mydata, "Mine", "disc", sizes, 0, "mvtec_ad")
    (mydata / "disc").rename(mydata / "gear")
    shutil.copytree(next((mydata / "gear/test").iterdir()), new)

    planned = project.plan(*TRAIN[3:5], overlays=("config/plant.yaml",))
    assert "Train dhdiff on Mine gear" in planned
    assert "Detect on Mine gear with the pairs of dhdiff, seed 0" in planned
    file = project.root / "config/plant.yaml"
    values = overlay(yaml.safe_load(file.read_text(encoding="utf-8")), SMALL)
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    for command in (CHECK, TRAIN, PREDICT, EXPORT):
        done = project.run(*command)
        assert done.returncode == 0, done.stdout
    assert (
        "recall at the promised" in (project.root / "results/plant/tables/table_4.md").read_text()
    )
    with open(project.root / "verdicts/predictions.csv", newline="", encoding="utf-8") as handle:
        rows = {row["picture"]: row for row in csv.DictReader(handle)}
    assert set(rows) == {str(path.relative_to(project.root)) for path in new.iterdir()}
    assert all(row["verdict"] for row in rows.values())
    done = project.run(*EXAMPLE)
    assert done.returncode == 0, done.stdout
    score, verdict, name = done.stdout.strip().split(",")
    assert verdict == rows[name]["verdict"]
    assert abs(float(score) - float(rows[name]["score"])) < 1e-5

    # a mistake of the line: the picture is added, and the category made again
    picture = next((mydata / "gear/train/good").iterdir())
    shutil.copy(picture, mydata / "gear/train/good/900.png")
    messages = project.plan(*TRAIN[3:5], overlays=("config/plant.yaml",))
    assert "Prepare Mine gear" in messages
