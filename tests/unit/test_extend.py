"""docs/extend.md is true: its files and its overlays work as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small
import torch
import yaml
from pages import FILES
from PIL import Image
from test_generate import generate

from helixbench import config
from helixbench.errors import UserError
from helixbench.generate import stage
from helixbench.methods.method import method_class
from helixbench.records import Pair, read_csv

ROOT = Path(__file__).resolve().parents[2]

WASH = {path: text for path, text in FILES.items() if "wash" in path}
WITHOUT_THEM = """
import pkgutil
from importlib import import_module

import yaml

import helixbench
from helixbench.config import json_schema, load

values = yaml.safe_load(open("before.yaml", encoding="utf-8"))
for kind in KINDS:
    del values["train"]["methods"][kind]
    values["train"]["use"].remove(kind)
assert yaml.safe_load(open("params.yaml", encoding="utf-8")) == values, "no more is gone"
assert list(load("params.yaml").train.methods) == values["train"]["use"]
assert not [kind for kind in KINDS if kind in str(json_schema()["$defs"].keys()).lower()]
for module in pkgutil.walk_packages(helixbench.__path__, "helixbench."):
    if not module.name.endswith("__main__"):
        import_module(module.name)
"""


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of what a method is a part of."""
    for folder in ("src/helixbench", "config"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for file in ("params.yaml", "workflow/schemas/params.schema.json", "tests/small.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, tmp_path / file)
    return tmp_path


def python(project: Path, *arguments: str) -> str:
    """Output of Python with the package of a project."""
    places = os.pathsep.join(str(project / folder) for folder in ("src", "tests"))
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": places},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def contents(project: Path) -> dict[str, bytes]:
    """Files of a project, but for what Python and pytest cache."""
    return {
        str(file.relative_to(project)): file.read_bytes()
        for file in project.rglob("*")
        if file.is_file() and "cache" not in str(file.relative_to(project))
    }


def test_a_method_of_the_repository_is_its_folder_its_test_and_its_paragraph(project):
    before = contents(project)
    for path, text in WASH.items():
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).write_text(text, encoding="utf-8")
    python(project, "-m", "helixbench.cli", "config", "write")
    python(
        project,
        *("-m", "helixbench.cli", "config", "check"),
        *("params.yaml", "config/mini.yaml"),
        "config/wash.yaml",
    )
    assert "1 passed" in python(
        project, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/test_wash.py"
    )
    after = contents(project)
    written = {"params.yaml", "workflow/schemas/params.schema.json"}
    assert {path for path in before if after[path] != before[path]} == written
    assert after.keys() - before.keys() == WASH.keys()
    methods = yaml.safe_load(after["params.yaml"])["train"]["methods"]
    assert methods["wash"]["strength"] == 0.8 and methods["wash"]["optim"]["steps"] == 2000
    assert b"Wash: a defect drawn by the base model's U-Net" in after["params.yaml"]


def test_the_folder_of_a_rival_can_be_deleted(project):
    gone = ["cutpaste", "dfmgan"]
    (project / "params.yaml").rename(project / "before.yaml")
    for kind in gone:
        shutil.rmtree(project / "src/helixbench/methods" / kind)
    python(project, "-m", "helixbench.cli", "config", "write")
    python(project, "-c", f"KINDS = {gone}\n{WITHOUT_THEM}")


@pytest.fixture
def overlay(tmp_path, monkeypatch) -> dict:
    """The document's file, importable, and its overlay."""
    (tmp_path / "my_stain.py").write_text(FILES["my_stain.py"], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return yaml.safe_load(FILES["config/mine.yaml"])


def validated(tmp_path, overlay: dict) -> config.Config:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(overlay), encoding="utf-8")
    return config.load(ROOT / "params.yaml", file)


def test_the_example_makes_pairs(overlay, tmp_path):
    loaded = validated(tmp_path, overlay)
    assert loaded.train.methods["stain"].label == "Stain" and not hasattr(
        loaded.train.methods["stain"], "optim"
    )
    loaded = loaded.model_copy(update={"generate": generate(pairs=3)})
    part = config.Slice(
        config.slice_config(
            loaded, ["run.seed", "generate", "train.methods", "train.methods.stain"]
        )
    )
    assert part["train.methods.stain"].strength == 0.5, (
        "its settings come through the slice of a job"
    )
    assert part["train.methods"]["stain"] == part["train.methods.stain"]
    prepared = small.prepared(tmp_path / "disc")
    stage.run(
        "stain",
        "Data",
        "disc",
        part,
        prepared=prepared,
        model=None,
        state=tmp_path / "s",
        out=tmp_path / "o",
    )
    pairs = read_csv(tmp_path / "o/manifest.csv", Pair)
    assert len(pairs) == 6
    for pair in pairs:
        image, mask = (
            np.asarray(Image.open(tmp_path / "o" / name)) for name in (pair.image, pair.mask)
        )
        assert np.ptp(image[mask > 0].mean(-1)) < np.ptp(image[mask == 0].mean(-1)), (
            "half a stain halves what it covers"
        )
        assert pair.method == "stain"


def test_the_whole_configuration_is_written_with_its_settings(overlay, tmp_path, recwarn):
    dumped = validated(tmp_path, overlay).model_dump(mode="json")
    assert dumped["train"]["methods"]["stain"] == {
        "kind": "my_stain:Stain",
        "label": "Stain",
        "strength": 0.5,
    }
    assert not [warning for warning in recwarn if "serializ" in str(warning.message).lower()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strenght": 0.5}, r"train\.methods\.stain\.strenght: no such key"),
        (
            {"strength": 2},
            r"train\.methods\.stain\.strength: Input should be less than or equal to 1",
        ),
        ({"kind": "my_stain:Stane"}, r"train\.methods\.stain: my_stain:Stane cannot be imported"),
        (
            {"kind": "my_stane:Stain"},
            r"train\.methods\.stain: my_stane:Stain cannot be imported .* PYTHONPATH",
        ),
        (
            {"kind": "my_stain:Method"},
            r"train\.methods\.stain: my_stain:Method needs a class attribute Config",
        ),
        ({"kind": "stain"}, r"train\.methods\.stain\.kind: "),
        ({"label": "DH-Diff"}, "two methods have one label"),
    ],
)
def test_a_mistake_is_one_line(overlay, tmp_path, change, message):
    overlay["train"]["methods"]["stain"] |= change
    with pytest.raises(UserError, match=message) as caught:
        validated(tmp_path, overlay)
    assert "\n" not in str(caught.value)


def test_a_package_from_elsewhere_has_the_shape_of_the_package_s_own(tmp_path, monkeypatch):
    for name in ("config", "method"):
        text = WASH[f"src/helixbench/methods/wash/{name}.py"]
        text = text.replace("helixbench.methods.wash", "lab.wash")
        (tmp_path / "lab/wash").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"lab/wash/{name}.py").write_text(text.replace('Literal["wash"]', "str"))
    monkeypatch.syspath_prepend(tmp_path)
    mine = {"kind": "lab.wash", "optim": {"steps": 1, "batch": 1, "lr": 1e-3}}
    loaded = validated(tmp_path, {"train": {"use": ["mine"], "methods": {"mine": mine}}})
    assert loaded.train.methods["mine"].strength == 0.8
    assert method_class("lab.wash").__module__ == "lab.wash.method"


def test_a_broken_file_is_one_line(overlay, tmp_path):
    (tmp_path / "my_broken.py").write_text("class Stain(:\n", encoding="utf-8")
    overlay["train"]["methods"]["stain"]["kind"] = "my_broken:Stain"
    with pytest.raises(
        UserError, match=r"stain: my_broken:Stain cannot be imported \(SyntaxError"
    ) as caught:
        validated(tmp_path, overlay)
    assert "\n" not in str(caught.value)


def test_a_class_that_is_no_method_is_one_line(overlay, tmp_path):
    (tmp_path / "no_method.py").write_text(
        "import my_stain\n\nclass Thing:\n    Config = my_stain.Stain.Config\n", encoding="utf-8"
    )
    with pytest.raises(UserError, match="no_method:Thing: not a subclass"):
        method_class("no_method:Thing")


def test_the_example_that_draws_makes_a_pair_of_its_seed():
    page = (ROOT / "docs/extend.md").read_text(encoding="utf-8")
    (example,) = [
        text for text in re.findall(r"```python\n(.*?)```", page, re.S) if "Blotch" in text
    ]
    found: dict = {}
    exec(example, found)  # noqa: S102
    (image, mask), (same, _), (other, _) = (found["one_pair"](seed) for seed in (0, 0, 1))
    assert image.shape == (1, 3, 32, 32) and mask.shape == (1, 1, 32, 32)
    assert torch.equal(image, same) and not torch.equal(image, other)
    assert (image[mask.expand_as(image) > 0] < 0.5).all()
    assert 0 < mask.mean() < 0.3
