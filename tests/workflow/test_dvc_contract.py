"""What is made here, pushed, and pulled elsewhere is up to date there, for DVC and for Snakemake;
and never stale.

A run of one's own, added to dvc.yaml by its one line, with raw pictures and a base model that `dvc
add` versions, DH-Diff trained for a few steps, and all six stages; a folder and a real S3 server
(moto) as remotes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import BIN, NO_SETTINGS, ROOT, Project

from helixbench.config import load

REVISION = load(ROOT / "params.yaml").train.pretrained.revision
REPORT, OVERLAY = "report@tiny", "config/tiny.yaml"
RUN = "tiny: {overlay: config/tiny.yaml, data: data, base: models/tiny}"
MODEL = "results/tiny/train/dhdiff/MVTec-AD/disc"
BASE = """
from pathlib import Path
import torch
from helixbench.config import load
from helixbench.diffusion.base import build
from helixbench.diffusion.linear import Components, linear_autoencoder

folder, scratch = Path("models/tiny"), load("params.yaml", "config/tiny.yaml").train.scratch
pictures = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
components = Components([(pictures, torch.ones(4, 1, 32, 32))], scratch.autoencoder.factor)
vae = linear_autoencoder(components, scratch.autoencoder.latent_channels, 0.5)
build(scratch, vae, 32, ["disc", "weave"], 0).save(folder)
(folder / "model_index.json").write_text("{}")
"""
SIZES = {"size": 40, "train_good": 4, "test_good": 2, "per_defect": 2}
IDENTITY = {
    f"GIT_{who}_{what}": "test@localhost"
    for who in ("AUTHOR", "COMMITTER")
    for what in ("NAME", "EMAIL")
}
ENVIRONMENT = {
    **IDENTITY,
    **NO_SETTINGS,
    "DVC_NO_ANALYTICS": "1",
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def run(project: Project, *command: str, fails: bool = False) -> str:
    """Run in the project; both outputs. Succeeds, or fails if it is to."""
    result = project.run(*command, timeout=1800, **ENVIRONMENT)
    assert (result.returncode != 0) == fails, result.stdout[-6000:]
    return result.stdout


def git(project: Project, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments],
        cwd=project.root,
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **IDENTITY, **NO_SETTINGS},
    ).stdout


def restore(project: Project, fails: bool = False) -> str:
    """`make restore`, with the programs of this environment as the installed ones."""
    command = ["make", "restore", "RUN=tiny", f"BIN={BIN}", "--assume-old", ".venv/installed"]
    result = subprocess.run(
        command,
        cwd=project.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **ENVIRONMENT},
    )
    assert (result.returncode != 0) == fails, result.stdout[-6000:]
    return result.stdout


def clean(project: Project) -> bool:
    """Whether DVC finds nothing to do for the run."""
    return (
        project.run("dvc", "status", "--quiet", "--with-deps", REPORT, **ENVIRONMENT).returncode
        == 0
    )


def change(project: Project, key: str, value) -> None:
    """Set a dotted key of the run's overlay."""
    file = project.root / OVERLAY
    values = yaml.safe_load(file.read_text())
    node = values
    *above, last = key.split(".")
    for part in above:
        node = node.setdefault(part, {})
    node[last] = value
    file.write_text(yaml.safe_dump(values))


def stages_run(output: str) -> set[str]:
    return set(re.findall(r"Running stage '(\w+)@tiny'", output))


def locked(project: Project, stage: str) -> dict:
    return yaml.safe_load((project.root / "dvc.lock").read_text())["stages"][f"{stage}@tiny"]


def hashes(project: Project) -> dict[str, str]:
    """sha256 of every result that a stage declares."""
    results = project.root / "results/tiny"
    files = [
        file
        for file in results.rglob("*")
        if file.is_file() and "config" not in file.relative_to(results).parts[:1]
    ]
    return {
        str(file.relative_to(results)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.name[0] != "."
    }


def times(folder: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def s3():
    """An S3 server on loopback with an empty bucket; its address."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    names = {
        "aws_access_key_id": "test",
        "aws_secret_access_key": "test",
        "region_name": "us-east-1",
    }
    boto3.client("s3", endpoint_url=endpoint, **names).create_bucket(Bucket="bench")
    yield endpoint
    server.stop()


@pytest.fixture(scope="module")
def made(tmp_path_factory, s3) -> Project:
    """All six stages, made by `dvc repro`, committed, and pushed to both remotes."""
    folder = tmp_path_factory.mktemp("dvc")
    project = Project(folder / "made")
    (project.root / "draw.json").write_text(
        json.dumps({"run.seed": 1, "prepare.datasets.Any.procedural": SIZES})
    )
    for category in ("disc", "weave"):
        run(
            project,
            "helixbench",
            "draw",
            "Any",
            category,
            "--config",
            "draw.json",
            "--out",
            "data/mvtec_ad",
        )
    smoke = yaml.safe_load((project.root / "config/smoke.yaml").read_text())
    smoke["run"]["name"] = "tiny"
    smoke["prepare"] |= {"use": ["MVTec-AD"], "datasets": {"MVTec-AD": {"categories": ["disc"]}}}
    smoke["train"] |= {"base": "stable-diffusion-v1-5", "pretrained": {"path": "models/tiny"}}
    smoke["train"]["use"] = ["dhdiff"]
    smoke["generate"] |= {"pairs": 2, "gate": {"redraws": 0}}
    smoke["detect"]["use"] = []
    smoke["report"]["tables"] = [4]
    (project.root / OVERLAY).write_text(yaml.safe_dump(smoke))
    run(project, sys.executable, "-c", BASE)
    stages = project.root / "dvc.yaml"
    stages.write_text(re.sub(r"^( +)mini: \{", rf"\1{RUN}\n\g<0>", stages.read_text(), flags=re.M))
    git(project, "init", "--quiet")
    run(project, "dvc", "init", "--quiet")
    run(project, "dvc", "remote", "add", "--default", "folder", str(folder / "remote"))
    run(project, "dvc", "remote", "add", "s3", "s3://bench/results")
    run(project, "dvc", "remote", "modify", "s3", "endpointurl", s3)
    run(project, "dvc", "add", "--quiet", "data/mvtec_ad", "models/tiny")
    assert stages_run(run(project, "dvc", "repro", REPORT)) == {
        "prepare",
        "train",
        "generate",
        "score",
        "detect",
        "report",
    }
    git(project, "add", ".")
    git(project, "commit", "--quiet", "--message", "made")
    git(project, "tag", "--annotate", "tiny-disc@v1.0.0", "--message", "registered")
    tracked = git(project, "ls-files", "results", "data", "models").split()
    text = ["numbers.tex", *(f"table_4.{suffix}" for suffix in ("csv", "html", "md", "tex"))]
    scores = [f"score/dhdiff/MVTec-AD/disc.{suffix}" for suffix in ("csv", "json")]
    kept = [*scores, "summary.json", *(f"tables/{name}" for name in text)]
    assert tracked == [
        "data/mvtec_ad.dvc",
        "models/tiny.dvc",
        *(f"results/tiny/{name}" for name in kept),
    ]
    for remote in ("folder", "s3"):
        run(project, "dvc", "push", "--with-deps", "--remote", remote, REPORT)
    return project


@pytest.fixture(scope="module")
def clones(made) -> dict[str, Project]:
    """Clones that are pulled and restored, by the remote that they pulled from."""
    found = {}
    for remote in ("folder", "s3"):
        found[remote] = Project.at(made.root.parent / remote)
        git(made, "clone", "--quiet", str(made.root), str(found[remote].root))
        run(found[remote], "dvc", "remote", "default", "--local", remote)
        restore(found[remote])
    return found


@pytest.fixture
def clone(clones, tmp_path) -> Project:
    """A restored clone that a test may change."""
    shutil.copytree(clones["folder"].root, tmp_path / "clone", symlinks=True)
    return Project.at(tmp_path / "clone")


@pytest.mark.parametrize("remote", ["folder", "s3"])
def test_a_restored_clone_has_nothing_to_do(made, clones, remote):
    clone = clones[remote]
    assert hashes(clone) == hashes(made) and len(hashes(clone)) > 50
    assert clean(clone)
    assert clone.plan(overlays=(OVERLAY,)) == set()
    assert stages_run(run(clone, "dvc", "repro", REPORT)) == set()
    assert git(clone, "status", "--short") == ""


def test_a_model_comes_by_its_name(clones, tmp_path):
    clone = clones["folder"]
    run(clone, "dvc", "get", ".", MODEL, "--out", str(tmp_path / "model"))
    trained = times(clone.root / "results/tiny/train/dhdiff/MVTec-AD/disc")
    assert trained and {
        file.name for file in (tmp_path / "model").rglob("*") if file.is_file()
    } == {Path(file).name for file in trained}


def test_one_changed_parameter_runs_the_stages_that_read_it(clone):
    results = clone.root / "results/tiny"
    before = {room: times(results / room) for room in ("prepare", "train", "generate", "detect")}
    change(clone, "score.inception_score.splits", 1)
    assert stages_run(run(clone, "dvc", "repro", REPORT)) == {"score", "report"}
    assert {room: times(results / room) for room in before} == before
    summary = "results/tiny/summary.json"
    diff = json.loads(run(clone, "dvc", "metrics", "diff", "--json", "--targets", summary))[summary]
    assert set(diff) == {"MVTec-AD.DH-Diff.IS"} and diff["MVTec-AD.DH-Diff.IS"]["diff"] != 0
    assert clean(clone)


def test_a_failed_category_loses_no_finished_one(clone):
    trained = clone.root / "results/tiny/train"
    before, record = times(trained), locked(clone, "train")
    change(clone, "prepare.datasets.MVTec-AD.categories", ["disc", "weave"])
    obstacle = trained / "dhdiff/MVTec-AD/weave"
    obstacle.write_text("in the way of the second category")
    failed = run(clone, "dvc", "repro", "train@tiny", fails=True)
    assert stages_run(failed) == {"prepare", "train"}
    assert times(trained) == {**before, str(obstacle): obstacle.stat().st_mtime_ns}
    assert locked(clone, "train") == record
    obstacle.unlink()
    assert stages_run(run(clone, "dvc", "repro", "train@tiny")) == {"train"}
    after = times(trained)
    assert before.items() <= after.items()
    assert (trained / "dhdiff/MVTec-AD/weave/manifest.json").is_file()
    assert locked(clone, "train") != record


def test_a_stale_checkpoint_is_never_locked_under_new_parameters(clone):
    """Snakemake goes by modification times, and those are in order here: as after a pull, with none
    of its own records."""
    shutil.rmtree(clone.root / ".snakemake")
    results = clone.root / "results/tiny"
    manifest = results / "train/dhdiff/MVTec-AD/disc/manifest.json"
    before, record = times(results / "train"), locked(clone, "train")
    optim = yaml.safe_load((clone.root / OVERLAY).read_text())["train"]["methods"]["dhdiff"][
        "optim"
    ]
    change(clone, "train.methods.dhdiff.optim", {**optim, "lr": 0.002})

    refused = restore(clone, fails=True)
    assert "train@tiny" in refused and "nothing was touched" in refused
    touched = clone.snakemake("--touch", "--forceall", overlays=(OVERLAY,))
    assert touched.returncode != 0
    made_of_it = (manifest, results / "generate/dhdiff/MVTec-AD/disc/manifest.csv")
    assert any(f"helixbench: {x.relative_to(clone.root)}" in touched.stdout for x in made_of_it)
    assert "made with other parameters" in touched.stdout and "Traceback" not in touched.stdout
    assert times(results / "train") == before

    # the old model lands after the new parameters did: a copy from another machine, a job that was
    # still running
    stamp = manifest.stat()
    os.utime(manifest, (stamp.st_atime + 3600, stamp.st_mtime + 3600))
    stopped = run(clone, "dvc", "repro", "train@tiny", fails=True)
    assert "other parameters" in stopped and locked(clone, "train") == record
    os.utime(manifest, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))

    assert stages_run(run(clone, "dvc", "repro", "train@tiny")) == {"train"}
    assert (
        json.loads(manifest.read_text())["config"]["train.methods.dhdiff"]["optim"]["lr"] == 0.002
    )
    now = locked(clone, "train")
    assert now["params"][OVERLAY]["train"]["methods"]["dhdiff"]["optim"]["lr"] == 0.002
    assert now["outs"] != record["outs"]


@pytest.mark.parametrize("change_base", ["revision", "content"])
def test_another_base_model_trains_again(clone, change_base):
    """The folder says nothing to Snakemake: neither its name nor, where a file is replaced, its
    time need change."""
    shutil.rmtree(clone.root / ".snakemake")
    record, prepared = locked(clone, "train"), times(clone.root / "results/tiny/prepare")
    weights = clone.root / "models/tiny/vae/diffusion_pytorch_model.safetensors"
    if change_base == "revision":
        change(clone, "train.pretrained.revision", "0" * 40)
        assert restore(clone, fails=True)
    else:
        stamp, content = weights.stat(), bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.unlink()  # a link into DVC's cache
        weights.write_bytes(content)
        os.utime(weights, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert stages_run(run(clone, "dvc", "repro", "train@tiny")) == {"train"}
    assert (
        locked(clone, "train") != record and times(clone.root / "results/tiny/prepare") == prepared
    )
    facts = json.loads(
        (clone.root / "results/tiny/train/dhdiff/MVTec-AD/disc/manifest.json").read_text()
    )
    assert facts["config"]["train.pretrained.revision"] == (
        "0" * 40 if change_base == "revision" else REVISION
    )


def test_another_layout_is_prepared_again(clone):
    """Also where Snakemake's records, which alone know a rule's parameters, are lost."""
    shutil.rmtree(clone.root / ".snakemake")
    change(clone, "prepare.datasets.MVTec-AD.layout", "mpdd")
    assert "Prepare MVTec-AD disc" in clone.plan(overlays=(OVERLAY,))
