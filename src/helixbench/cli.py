"""The console script `helixbench`: one thin command a stage; the only file that imports across
rooms.

Rooms are imported inside the commands, so that `--help` loads neither torch nor the schema.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from helixbench import __version__
from helixbench.errors import UserError, storage_line

if TYPE_CHECKING:
    from helixbench.config import Slice

app = typer.Typer(
    name="helixbench",
    help="Few-shot industrial anomaly generation: prepare, train, generate, score, detect, report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Dataset = Annotated[str, typer.Argument(help="Data set, as named in params.yaml")]
Category = Annotated[str, typer.Argument(help="Category of the data set")]
Method = Annotated[str, typer.Argument(help="Method key of params.yaml")]
ConfigFile = Annotated[
    Path, typer.Option("--config", help="Configuration slice (JSON) written by the workflow")
]
Prepared = Annotated[Path, typer.Option(help="Folder written by `prepare`")]
Pairs = Annotated[Path, typer.Option(help="Folder written by `generate`")]
State = Annotated[Path, typer.Option(help="Folder for resume state")]
Out = Annotated[Path, typer.Option(help="Output folder or file")]
Threads = Annotated[int | None, typer.Option(help="CPU threads")]


_COLLECT = gc.get_threshold()


def _collect_as_usual() -> None:
    """Undo what `main` set for the time of imports. What packages are made of stays: it is never
    looked at again.
    """
    if gc.get_threshold() != _COLLECT:
        gc.freeze()
        gc.set_threshold(*_COLLECT)


def _slice(file: Path) -> Slice:
    """The values that a stage reads, asked for when its packages are imported."""
    from helixbench.config import Slice

    _collect_as_usual()
    return Slice.load(file)


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Tracebacks for errors of the input, too.")
    ] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    if debug:
        os.environ["HELIXBENCH_DEBUG"] = "1"


def _threads(threads: int | None) -> None:
    from helixbench.engine.devices import set_threads

    set_threads(threads)


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

    values = _slice(config)
    render.draw(
        out,
        dataset,
        category,
        values[f"prepare.datasets.{dataset}.procedural"],
        values["run.seed"],
        layout,
    )


@app.command()
def prepare(
    dataset: Dataset,
    category: Category,
    config: ConfigFile,
    raw: Annotated[Path, typer.Option(help="Raw root: holds one folder a category")],
    out: Out,
    layout: Annotated[str, typer.Option(help="Raw folder layout")] = "mvtec_ad",
) -> None:
    """Resize, binarise, split, check for leaks, cut references."""
    from helixbench.prepare import stage

    stage.run(dataset, category, _slice(config), layout=layout, raw=raw, out=out)


@app.command("import")
def import_pictures(
    root: Annotated[
        Path, typer.Argument(help="Raw folder: holds one folder a category, or is one")
    ],
    layout: Annotated[str, typer.Option(help="Raw folder layout; `folder`: pictures of your own")],
    out: Annotated[Path | None, typer.Option(help="Manifest (CSV) to write")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Contact sheet (PNG) with mask outlines to write")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Name of the data set in the manifest")
    ] = None,
) -> None:
    """Check raw pictures and describe them: a summary, a manifest, a contact sheet; or all that is
    wrong with them.
    """
    from helixbench.prepare import importing

    importing.run(layout, root, out=out, report=report, dataset=dataset)


@app.command()
def train(
    method: Annotated[
        str, typer.Argument(help="Method key of params.yaml, or `base` for the base model")
    ],
    dataset: Dataset,
    category: Category,
    config: ConfigFile,
    prepared: Prepared,
    state: State,
    out: Out,
    base: Annotated[
        Path | None, typer.Option(help="Base-model folder (not for `base` itself)")
    ] = None,
    threads: Threads = None,
    processes: Annotated[
        int,
        typer.Option(
            min=0, help="Processes that share the training, a GPU each (not for `base`); 0 is 1"
        ),
    ] = 1,
) -> None:
    """Train the base model or a method on one category."""
    processes = 1 if method == "base" else max(1, processes)
    if processes > 1:
        from helixbench.engine import distributed

        if not distributed.launched():
            raise typer.Exit(distributed.launch(processes, sys.argv[1:]))
    _threads(threads and max(1, threads // processes))
    if method == "base":
        from helixbench.train import base as train_base

        train_base.run(dataset, category, _slice(config), prepared=prepared, state=state, out=out)
    else:
        from helixbench.train import stage as train_stage

        train_stage.run(
            method,
            dataset,
            category,
            _slice(config),
            prepared=prepared,
            base=base,
            state=state,
            out=out,
        )


WORKFLOW, BY_HAND = "In the workflow", "By hand"
_hand = {"rich_help_panel": BY_HAND}


@app.command()
def generate(
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder")],
    method: Annotated[
        str | None, typer.Argument(help="Method key of params.yaml", rich_help_panel=WORKFLOW)
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Argument(help="Data set, as named in params.yaml", rich_help_panel=WORKFLOW),
    ] = None,
    category: Annotated[
        str | None, typer.Argument(help="Category of the data set", rich_help_panel=WORKFLOW)
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Trained model folder (methods that learn)")
    ] = None,
    threads: Threads = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Configuration slice (JSON) written by the workflow", rich_help_panel=WORKFLOW
        ),
    ] = None,
    prepared: Annotated[
        Path | None,
        typer.Option(
            help="Folder written by `prepare`; by hand: the gate learns from its masks",
            rich_help_panel=WORKFLOW,
        ),
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="Folder for resume state", rich_help_panel=WORKFLOW)
    ] = None,
    part: Annotated[
        str,
        typer.Option(help="K/N: the K-th of N jobs that share the pairs", rich_help_panel=WORKFLOW),
    ] = "1/1",
    record: Annotated[
        Path | None,
        typer.Option(
            help="Record of this part (JSON lines); `gather` makes the manifest of all",
            rich_help_panel=WORKFLOW,
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help='Text, e.g. "a photo of a bottle with broken_large"', **_hand)
    ] = None,
    defect: Annotated[
        str | None,
        typer.Option(help="Defect type instead of a prompt; what --control is about", **_hand),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Picture that the reference is cut from", **_hand)
    ] = None,
    raw_mask: Annotated[
        str | None, typer.Option(help="Cells of the defect, e.g. 5x5:1,7, or a mask file", **_hand)
    ] = None,
    control: Annotated[
        Path | None, typer.Option(help="Drawn mask or sketch, bright on dark", **_hand)
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(help="Where the defect is: x,y from 0 to 1; repeat for more", **_hand),
    ] = None,
    number: Annotated[int, typer.Option("--number", "-n", help="Pairs to make", **_hand)] = 1,
    seed: Annotated[int, typer.Option(help="Root seed of the pairs", **_hand)] = 0,
    steps: Annotated[int, typer.Option(help="Denoising steps", **_hand)] = 50,
    guidance: Annotated[float, typer.Option(help="Guidance scale", **_hand)] = 2.5,
    sampler: Annotated[str, typer.Option(help="ddim or dpmsolver++", **_hand)] = "ddim",
) -> None:
    """Make image+mask pairs: the planned ones of a category (workflow), or some by hand from a
    trained DH-Diff.
    """
    _threads(threads)
    planned = {
        "METHOD": method,
        "DATASET": dataset,
        "CATEGORY": category,
        "--config": config,
        "--prepared": prepared,
        "--state": state,
    }
    if method is not None:
        _all_given(planned)
        from helixbench.generate import stage

        values, folders = (
            _slice(config),
            {"prepared": prepared, "model": model, "state": state, "out": out},
        )
        if record is None and part == "1/1":
            stage.run(method, dataset, category, values, **folders)
        else:
            _all_given({"--record": record})
            stage.run_part(method, values, **folders, record=record, part=stage.parse_part(part))
    else:
        _all_given({"--model": model})
        from helixbench.generate import by_hand

        _collect_as_usual()
        by_hand.run(
            model=model,
            out=out,
            number=number,
            seed=seed,
            prompt=prompt,
            defect=defect,
            reference=reference,
            raw_mask=raw_mask,
            control=control,
            points=point or [],
            options={"steps": steps, "guidance": guidance, "sampler": sampler},
            prepared=prepared,
        )


@app.command()
def gpus(
    expect: Annotated[int, typer.Option(min=0, help="How many this job asked for")] = 1,
) -> None:
    """Print the GPUs that this job sees, and fail unless they are as many as it asked for and
    compute.
    """
    from helixbench.engine import devices

    print("\n".join(devices.check_gpus(expect)))


@app.command("gather")
def gather_pairs(
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
    """Write the manifest of generated pairs, however many jobs drew them, once every picture is
    there and unchanged.
    """
    from helixbench.generate import gather

    gather.run(method, category, _slice(config), records=record, state=state, out=out)


def _all_given(options: dict, command: str = "generate") -> None:
    missing = [name for name, value in options.items() if value is None]
    if missing:
        raise UserError(
            f"{command}: {', '.join(missing)} not given; see helixbench {command} --help"
        )


Size = Annotated[
    int, typer.Option(help="Working side of all pictures [pixel]", min=32, max=1024, **_hand)
]
Settings = Annotated[
    Path | None, typer.Option(help="YAML with what differs of the section of params.yaml", **_hand)
]
Name = Annotated[
    str | None,
    typer.Option(
        help="What the method is called in the rows; otherwise the folder of the pairs", **_hand
    ),
]


def _settings(key: str, defaults: dict, file: Path | None, seed: int) -> Slice:
    """Configuration of a stage by hand: the paper's values but for `defaults` and the file.

    Its key `gate` is that of the section `generate`; the slice has it as generate.gate.
    """
    import yaml

    from helixbench.config import Slice, overlay

    _collect_as_usual()
    try:
        given = yaml.safe_load(file.read_text(encoding="utf-8")) or {} if file else {}
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{file}: not readable as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(given, dict):
        raise UserError(f"{file}: not a YAML mapping of keys; see the section {key} of params.yaml")
    gate = given.pop("gate", {})
    values = Slice({key: overlay(defaults, given), "generate.gate": gate, "run.seed": seed})
    _ = values[key], values["generate.gate"]  # checked before any work
    return values


@app.command()
def score(
    pairs: Annotated[
        Path,
        typer.Option(help="Folder of pairs: written by `generate`, or in the layout of MVTec AD"),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output file (CSV)")],
    method: Annotated[
        str | None, typer.Argument(help="Method key of params.yaml", rich_help_panel=WORKFLOW)
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Argument(help="Data set, as named in params.yaml", rich_help_panel=WORKFLOW),
    ] = None,
    category: Annotated[
        str | None, typer.Argument(help="Category of the data set", rich_help_panel=WORKFLOW)
    ] = None,
    threads: Threads = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Configuration slice (JSON) written by the workflow", rich_help_panel=WORKFLOW
        ),
    ] = None,
    prepared: Annotated[
        Path | None, typer.Option(help="Folder written by `prepare`", rich_help_panel=WORKFLOW)
    ] = None,
    real: Annotated[
        Path | None,
        typer.Option(
            help="Real defects in the layout of MVTec AD; train/good is used, too", **_hand
        ),
    ] = None,
    name: Name = None,
    size: Size = 256,
    seed: Annotated[int, typer.Option(help="Root seed of the shuffles", **_hand)] = 0,
    settings: Settings = None,
) -> None:
    """Score pairs: IS, KID, IC-LPIPS, image-mask agreement; of the workflow, or of any folder."""
    _threads(threads)
    if method is not None:
        given = {
            "DATASET": dataset,
            "CATEGORY": category,
            "--config": config,
            "--prepared": prepared,
        }
        _all_given(given, "score")
        from helixbench.score import stage

        stage.run(
            method, dataset, category, _slice(config), prepared=prepared, pairs=pairs, out=out
        )
        return
    _all_given({"--real": real}, "score")
    values = _settings(
        "score",
        {"inception_score": {"network": "auto"}, "ic_lpips": {"network": "auto"}},
        settings,
        seed,
    )
    from helixbench.prepare import judge
    from helixbench.score import stage

    name = name or pairs.resolve().name
    gate = values["generate.gate"]
    with judge.to_score(pairs, real, name=name, size=size, settings=gate) as given:
        stage.run(
            name,
            judge.DATASET,
            given.category,
            values,
            prepared=given.prepared,
            pairs=given.pairs,
            out=out,
        )


@app.command()
def detect(
    pairs: Annotated[
        Path,
        typer.Option(help="Folder of pairs: written by `generate`, or in the layout of MVTec AD"),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder")],
    method: Annotated[
        str | None, typer.Argument(help="Method key of params.yaml", rich_help_panel=WORKFLOW)
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Argument(help="Data set, as named in params.yaml", rich_help_panel=WORKFLOW),
    ] = None,
    category: Annotated[
        str | None, typer.Argument(help="Category of the data set", rich_help_panel=WORKFLOW)
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="Folder for resume state; by hand: <out>.state")
    ] = None,
    seed: Annotated[int, typer.Option(help="Training seed")] = 0,
    threads: Threads = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Configuration slice (JSON) written by the workflow", rich_help_panel=WORKFLOW
        ),
    ] = None,
    prepared: Annotated[
        Path | None, typer.Option(help="Folder written by `prepare`", rich_help_panel=WORKFLOW)
    ] = None,
    normals: Annotated[
        Path | None,
        typer.Option(help="Normal pictures: train/good in it, or the folder itself", **_hand),
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Pictures to test on, in the layout of MVTec AD", **_hand)
    ] = None,
    name: Name = None,
    size: Size = 256,
    settings: Settings = None,
) -> None:
    """Train the localization U-Net on pairs and normals, test it on held-out real pictures; of the
    workflow, or any folders.
    """
    _threads(threads)
    if method is not None:
        given = {
            "DATASET": dataset,
            "CATEGORY": category,
            "--config": config,
            "--prepared": prepared,
            "--state": state,
        }
        _all_given(given, "detect")
        from helixbench.detect import stage

        stage.run(
            method,
            dataset,
            category,
            _slice(config),
            seed=seed,
            prepared=prepared,
            pairs=pairs,
            state=state,
            out=out,
        )
        return
    _all_given({"--normals": normals, "--test": test}, "detect")
    optim = {"steps": 12500, "batch": 8, "lr": 1e-4, "decay": "multistep"}
    values = _settings("detect.localization", {"optim": optim}, settings, 0)
    from helixbench.detect import stage
    from helixbench.prepare import judge

    name = name or pairs.resolve().name
    state = state or out.with_name(f"{out.name}.state")
    gate = values["generate.gate"]
    with judge.to_detect(pairs, normals, test, name=name, size=size, settings=gate) as given:
        folders = {"prepared": given.prepared, "pairs": given.pairs, "state": state, "out": out}
        stage.run(name, judge.DATASET, given.category, values, seed=seed, **folders)


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
    seed: Annotated[int, typer.Option(help="Training seed")] = 0,
    threads: Threads = None,
) -> None:
    """Train a classifier of defect types on pairs, test it on held-out real defects."""
    from helixbench.detect import classification

    _threads(threads)
    classification.run(
        method,
        dataset,
        category,
        _slice(config),
        seed=seed,
        prepared=prepared,
        pairs=pairs,
        state=state,
        out=out,
    )


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
    seed: Annotated[int, typer.Option(help="Training seed")] = 0,
    threads: Threads = None,
) -> None:
    """Train a segmenter on pairs and normals, test it on held-out real defects."""
    from helixbench.detect import segmentation

    _threads(threads)
    folders = {"prepared": prepared, "pairs": pairs, "state": state, "out": out}
    segmentation.run(
        method, dataset, category, _slice(config), architecture=architecture, seed=seed, **folders
    )


@app.command()
def compare(
    comparator: Annotated[str, typer.Argument(help="Key under detect.comparators of params.yaml")],
    dataset: Dataset,
    category: Category,
    config: ConfigFile,
    prepared: Prepared,
    state: State,
    out: Out,
    seed: Annotated[int, typer.Option(help="Training seed")] = 0,
    threads: Threads = None,
) -> None:
    """Train an anomaly detector on normals alone, test it on held-out real pictures."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # anomalib draws its bars into log files, too
    from helixbench.detect import comparators

    _threads(threads)
    comparators.run(
        comparator,
        dataset,
        category,
        _slice(config),
        seed=seed,
        prepared=prepared,
        state=state,
        out=out,
    )


report_app = typer.Typer(help="Render tables and figures.", no_args_is_help=True)
app.add_typer(report_app, name="report")


@report_app.command()
def table(
    number: Annotated[int, typer.Argument(help="Table of the paper")],
    config: ConfigFile,
    published: Annotated[Path, typer.Option(help="Folder of the published tables")],
    out: Out,
    scores: Annotated[list[Path] | None, typer.Option(help="Score files")] = None,
) -> None:
    """One table of the paper as CSV, LaTeX, Markdown and HTML."""
    from helixbench.report import tables

    tables.run(number, _slice(config), published=published, scores=scores or [], out=out)


@report_app.command()
def grid(
    dataset: Dataset,
    config: ConfigFile,
    results: Annotated[Path, typer.Option(help="Run folder that holds prepare/ and generate/")],
    out: Out,
    arms: Annotated[
        bool, typer.Option("--arms", help="The rows of Table VIII instead of the methods")
    ] = False,
) -> None:
    """Generated pairs beside real ones, in the manner of the paper's Figure 5."""
    from helixbench.report import figures

    figures.run(dataset, _slice(config), results=results, out=out, arms=arms)


@report_app.command()
def attention(
    models: Annotated[
        list[str],
        typer.Argument(help="KEY=FOLDER: a DH-Diff of train.methods and its trained folder"),
    ],
    config: ConfigFile,
    prepared: Prepared,
    out: Annotated[
        Path, typer.Option(help="PNG to write; a PDF and the shares as JSON stand beside it")
    ],
    layer: Annotated[str, typer.Option(help="Layer shown")] = "encoder.1.0",
    threads: Threads = None,
) -> None:
    """Figure 3: what a query in the defect attends to, in models with and without DDA."""
    from helixbench.generate import attention

    _threads(threads)
    if not all("=" in model for model in models):
        raise UserError("report attention: give each model as KEY=FOLDER")
    named = {key: Path(folder) for key, _, folder in (model.partition("=") for model in models)}
    attention.run(_slice(config), models=named, prepared=prepared, layer=layer, out=out)


@report_app.command()
def control(
    model: Annotated[Path, typer.Argument(help="Folder of a trained DH-Diff")],
    config: ConfigFile,
    prepared: Prepared,
    out: Annotated[Path, typer.Option(help="PNG to write; PDF and JSON stand beside it")],
    threads: Threads = None,
) -> None:
    """Figure 1: pairs under point, detailed and raw-mask control beside each other."""
    from helixbench.generate import controlled

    _threads(threads)
    controlled.run(_slice(config), model=model, prepared=prepared, out=out)


@report_app.command()
def plots(
    config: ConfigFile,
    published: Annotated[Path, typer.Option(help="Folder of the published tables")],
    results: Annotated[Path, typer.Option(help="Run folder, e.g. results/bottle")],
    out: Out,
    scores: Annotated[list[Path] | None, typer.Option(help="Score files")] = None,
) -> None:
    """Results at a glance, training curves, cost, detector curves, masks; as PNG and PDF."""
    from helixbench.report import plots

    plots.run(_slice(config), results=results, scores=scores or [], published=published, out=out)


@report_app.command()
def numbers(
    out: Annotated[Path, typer.Option(help="File to write, e.g. numbers.tex")],
    tables: Annotated[list[Path], typer.Argument(help="Tables as CSV")],
) -> None:
    """A LaTeX macro that gives every number of the tables by its name."""
    from helixbench.report import numbers

    numbers.macros(tables, out)


@report_app.command()
def summary(
    config: ConfigFile,
    out: Annotated[Path, typer.Option(help="File to write, e.g. summary.json")],
    scores: Annotated[list[Path] | None, typer.Option(help="Score files")] = None,
) -> None:
    """Averages of all scores as JSON, for `dvc metrics`."""
    from helixbench.report import numbers

    numbers.summary(_slice(config), scores=scores or [], out=out)


@report_app.command()
def page(
    config: ConfigFile,
    results: Annotated[Path, typer.Option(help="Run folder, e.g. results/bottle")],
    out: Annotated[Path, typer.Option(help="File to write, e.g. index.html")],
    tables: Annotated[list[Path] | None, typer.Option(help="Tables as HTML fragments")] = None,
    figures: Annotated[list[Path] | None, typer.Option(help="Figures as PNG")] = None,
) -> None:
    """One HTML page that needs no network: tables, figures, pairs, provenance."""
    from helixbench.report import page

    page.run(_slice(config), results=results, tables=tables or [], figures=figures or [], out=out)


@report_app.command()
def measured(
    results: Annotated[Path, typer.Argument(help="Run folder, e.g. results/bottle")],
    out: Out,
    command: Annotated[str, typer.Option(help="Command that made the run")],
) -> None:
    """Scores and costs of a run as one CSV for results/measured/."""
    import datetime

    from helixbench.report import export

    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    export.run(results, out, command=command, date=today)


fetch_app = typer.Typer(
    help="Download what is not in the repository, with checksums.", no_args_is_help=True
)
app.add_typer(fetch_app, name="fetch")


@fetch_app.command("base")
def fetch_base(
    out: Annotated[Path, typer.Option(help="Folder to put it in")],
    repository: Annotated[
        str, typer.Option(help="Repository on the hub")
    ] = "stable-diffusion-v1-5/stable-diffusion-v1-5",
    revision: Annotated[
        str, typer.Option(help="Full commit hash")
    ] = "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
) -> None:
    """Stable Diffusion v1.5 in diffusers format (4 GB)."""
    from helixbench import fetch

    fetch.base(repository, revision, out)


@fetch_app.command("weights")
def fetch_weights(
    network: Annotated[
        list[str], typer.Argument(help="inception-v3, squeezenet1_1, vgg, alex, squeeze")
    ],
) -> None:
    """Weights of scoring networks, to where their packages look for them."""
    from helixbench import fetch, weights

    for name in network:
        if name not in weights.FILES:
            raise UserError(f"{name}: no such network; there are {', '.join(weights.FILES)}")
        fetch.scoring_weights(name)


config_app = typer.Typer(help="The configuration and its schema.", no_args_is_help=True)
app.add_typer(config_app, name="config")


@config_app.command()
def check(files: Annotated[list[Path], typer.Argument(help="params.yaml and overlays")]) -> None:
    """Validate a configuration."""
    from helixbench.config import load

    load(*files)


@config_app.command()
def schema() -> None:
    """Print the JSON schema of params.yaml."""
    from helixbench.config import json_schema

    print(json.dumps(json_schema(), indent=2, sort_keys=True))


def main() -> None:
    """Entry point: a UserError is one line, UserErrors a line each, a full or read-only disk is one
    line, too; exit code 2.
    """
    gc.set_threshold(
        1_000_000, 10, 10
    )  # looking for garbage takes a fifth of the time that importing torch does
    try:
        app()
    except Exception as error:
        disk = None if isinstance(error, UserError) else storage_line(error)
        if os.environ.get("HELIXBENCH_DEBUG") or not (disk or isinstance(error, UserError)):
            raise
        for line in [disk] if disk else getattr(error, "lines", [error]):
            print(f"helixbench: {' '.join(str(line).splitlines())}", file=sys.stderr)
        sys.exit(2)
    finally:
        gc.set_threshold(
            *_COLLECT
        )  # whoever called `main` from Python gets back the process as it was


if __name__ == "__main__":
    main()
