"""One thin command per rule of the workflow, in the order of the stages."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from helixbench.cli.common import (
    Category,
    ConfigFile,
    Dataset,
    Method,
    Out,
    Pairs,
    Prepared,
    Seed,
    State,
    Threads,
    quick_imports,
    read_slice,
    set_threads,
)
from helixbench.errors import UserError

app = typer.Typer()


@app.command()
def draw(
    dataset: Dataset,
    category: Category,
    config: ConfigFile,
    out: Out,
    layout: Annotated[
        str | None, typer.Option(help="Raw layout to write it in, instead of the configured one")
    ] = None,
) -> None:
    """Draw a category of the procedural data set in a raw layout."""
    from helixbench.datasets.procedural import render

    values = read_slice(config)
    sizes = values[f"prepare.datasets.{dataset}.procedural"]
    render.draw(out, dataset, category, sizes, values["run.seed"], layout)


@app.command()
def prepare(
    dataset: Dataset,
    category: Category,
    config: ConfigFile,
    raw: Annotated[Path, typer.Option(help="Raw root: holds one folder per category")],
    out: Out,
    layout: Annotated[str, typer.Option(help="Raw folder layout")] = "mvtec_ad",
) -> None:
    """Resize, binarise, split, check for leaks, cut references."""
    from helixbench.prepare import stage

    stage.run(dataset, category, read_slice(config), layout=layout, raw=raw, out=out)


@app.command()
def base(
    dataset: Dataset,
    category: Category,
    config: ConfigFile,
    prepared: Prepared,
    out: Out,
    threads: Threads = None,
) -> None:
    """Build the base model of a category from scratch."""
    set_threads(threads)
    with quick_imports():
        from helixbench.train import base as stage

    stage.run(dataset, category, read_slice(config), prepared=prepared, out=out)


@app.command()
def joint(
    config: ConfigFile,
    state: State,
    out: Out,
    prepared: Annotated[
        list[Path] | None,
        typer.Option(help="Folder written by `prepare`; repeat for each (train.joint.own)"),
    ] = None,
    threads: Threads = None,
) -> None:
    """Train one base model over many categories."""
    set_threads(threads)
    with quick_imports():
        from helixbench.train import joint as stage
    values = read_slice(config)
    stage.run(values, prepared=prepared or [], state=state, out=out, jobs=threads or 1)


@app.command()
def train(
    method: Method,
    dataset: Dataset,
    category: Category,
    config: ConfigFile,
    prepared: Prepared,
    state: State,
    out: Out,
    base: Annotated[Path, typer.Option(help="Base-model folder")],
    threads: Threads = None,
    processes: Annotated[
        int,
        typer.Option(min=0, help="Processes that share the training, one GPU each; 0 is 1"),
    ] = 1,
) -> None:
    """Train a method on one category."""
    processes = max(1, processes)
    if processes > 1:
        from helixbench.engine import distributed

        if not distributed.launched():
            raise typer.Exit(distributed.launch(processes, sys.argv[1:]))
    set_threads(threads and max(1, threads // processes))
    with quick_imports():
        from helixbench.train import stage
    folders = {"prepared": prepared, "state": state, "out": out}
    stage.run(method, dataset, category, read_slice(config), base=base, **folders)


@app.command()
def generate(
    method: Method,
    dataset: Dataset,
    category: Category,
    config: ConfigFile,
    prepared: Prepared,
    state: State,
    out: Out,
    model: Annotated[
        Path | None, typer.Option(help="Trained model folder (methods that learn)")
    ] = None,
    part: Annotated[
        str, typer.Option(help="K/N: the K-th of N jobs that share the pairs; needs --record")
    ] = "1/1",
    record: Annotated[
        Path | None,
        typer.Option(
            help="Record of this part (JSON lines), of which `gather` makes the manifest; without "
            "it, all pairs and their manifest are made at once"
        ),
    ] = None,
    threads: Threads = None,
) -> None:
    """Make the planned image+mask pairs of a category."""
    set_threads(threads)
    with quick_imports():
        from helixbench.generate import stage
    values = read_slice(config)
    folders = {"prepared": prepared, "model": model, "state": state, "out": out}
    if record is not None:
        stage.run_part(method, values, **folders, record=record, part=stage.parse_part(part))
    elif part == "1/1":
        stage.run(method, dataset, category, values, **folders)
    else:
        raise UserError(f"generate --part {part}: name a file for its record with --record")


@app.command()
def gather(
    method: Method,
    dataset: Dataset,
    category: Category,
    config: ConfigFile,
    record: Annotated[
        list[Path], typer.Option(help="Record of `generate --record`; repeat for each part")
    ],
    state: State,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder that `generate` wrote the pictures into")
    ],
) -> None:
    """Write the manifest of generated pairs, once all are there."""
    from helixbench.generate import gather as pairs

    pairs.run(method, category, read_slice(config), records=record, state=state, out=out)


@app.command()
def score(
    method: Method,
    dataset: Dataset,
    category: Category,
    config: ConfigFile,
    prepared: Prepared,
    pairs: Pairs,
    out: Out,
    threads: Threads = None,
) -> None:
    """Score pairs: IS, KID, IC-LPIPS, image-mask agreement."""
    set_threads(threads)
    with quick_imports():
        from helixbench.score import stage
    stage.run(
        method, dataset, category, read_slice(config), prepared=prepared, pairs=pairs, out=out
    )


@app.command()
def detect(
    method: Method,
    dataset: Dataset,
    category: Category,
    config: ConfigFile,
    prepared: Prepared,
    pairs: Pairs,
    state: State,
    out: Out,
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Train and test the localization U-Net on pairs and normals."""
    set_threads(threads)
    with quick_imports():
        from helixbench.detect.detector import Job
        from helixbench.detect.localization import Localization
    job = Job(method, dataset, category, seed, prepared, pairs, state, out)
    Localization(job, read_slice(config)).run()


@app.command()
def classify(
    method: Method,
    dataset: Dataset,
    category: Category,
    config: ConfigFile,
    prepared: Prepared,
    pairs: Pairs,
    state: State,
    out: Out,
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Train and test a classifier of defect types on pairs."""
    set_threads(threads)
    with quick_imports():
        from helixbench.detect.classification import Classification
        from helixbench.detect.detector import Job
    job = Job(method, dataset, category, seed, prepared, pairs, state, out)
    Classification(job, read_slice(config)).run()


@app.command()
def segment(
    method: Method,
    dataset: Dataset,
    category: Category,
    config: ConfigFile,
    prepared: Prepared,
    pairs: Pairs,
    state: State,
    out: Out,
    architecture: Annotated[str, typer.Option(help="segformer, unet or deeplabv3plus")],
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Train and test a segmenter on pairs and normals."""
    set_threads(threads)
    with quick_imports():
        from helixbench.detect.detector import Job
        from helixbench.detect.segmentation import Segmentation
    job = Job(method, dataset, category, seed, prepared, pairs, state, out)
    Segmentation(job, read_slice(config), architecture).run()


@app.command()
def compare(
    comparator: Annotated[str, typer.Argument(help="Key under detect.comparators of params.yaml")],
    dataset: Dataset,
    category: Category,
    config: ConfigFile,
    prepared: Prepared,
    state: State,
    out: Out,
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Train and test an anomaly detector on normals alone."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # anomalib draws its bars into log files as well
    set_threads(threads)
    with quick_imports():
        from helixbench.detect.comparators import Comparator
        from helixbench.detect.detector import Job
    job = Job(comparator, dataset, category, seed, prepared, None, state, out)
    Comparator(job, read_slice(config)).run()
