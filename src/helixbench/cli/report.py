"""Commands of the stage `report`; each function is named like its rule."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from helixbench.cli.common import (
    ConfigFile,
    Dataset,
    Out,
    Prepared,
    Published,
    Results,
    Scores,
    Threads,
    quick_imports,
    read_slice,
    set_threads,
)
from helixbench.errors import UserError

app = typer.Typer(help="Render tables and figures.", no_args_is_help=True)


@app.command("table")
def report_table(
    number: Annotated[int, typer.Argument(help="Table of the paper")],
    config: ConfigFile,
    published: Published,
    out: Out,
    scores: Scores = None,
) -> None:
    """One table of the paper as CSV, LaTeX, Markdown and HTML."""
    from helixbench.report import tables

    tables.run(number, read_slice(config), published=published, scores=scores or [], out=out)


@app.command("grid")
def report_grid(
    dataset: Dataset,
    config: ConfigFile,
    results: Annotated[Path, typer.Option(help="Run folder that holds prepare/ and generate/")],
    out: Out,
    arms: Annotated[
        bool, typer.Option("--arms", help="The rows of Table VIII instead of the methods")
    ] = False,
) -> None:
    """Generated pairs beside real ones, in the manner of the paper's Figure 5."""
    from helixbench.report import grid

    grid.run(dataset, read_slice(config), results=results, out=out, arms=arms)


@app.command("attention")
def report_attention(
    models: Annotated[
        list[str],
        typer.Argument(help="KEY=FOLDER: a DH-Diff of train.methods and its trained folder"),
    ],
    config: ConfigFile,
    prepared: Prepared,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="PNG to write; PDF and shares (JSON) go beside it"),
    ],
    layer: Annotated[str, typer.Option(help="Layer shown")] = "encoder.1.0",
    threads: Threads = None,
) -> None:
    """Figure 3: what a query in the defect attends to, in models with and without DDA."""
    if not all("=" in model for model in models):
        raise UserError("report attention: give each model as KEY=FOLDER")
    named = {key: Path(folder) for key, _, folder in (model.partition("=") for model in models)}
    set_threads(threads)
    with quick_imports():
        from helixbench.generate import attention
    attention.run(read_slice(config), models=named, prepared=prepared, layer=layer, out=out)


@app.command("control")
def report_control(
    model: Annotated[Path, typer.Argument(help="Folder of a trained DH-Diff")],
    config: ConfigFile,
    prepared: Prepared,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="PNG to write; PDF and JSON go beside it")
    ],
    threads: Threads = None,
) -> None:
    """Figure 1: pairs under point, detailed and raw-mask control beside each other."""
    set_threads(threads)
    with quick_imports():
        from helixbench.generate import controlled
    controlled.run(read_slice(config), model=model, prepared=prepared, out=out)


@app.command("plots")
def report_plots(
    config: ConfigFile,
    published: Published,
    results: Results,
    out: Out,
    scores: Scores = None,
) -> None:
    """Results at a glance, training curves, cost, detector curves, masks; as PNG and PDF."""
    from helixbench.report import plots

    values = read_slice(config)
    plots.run(values, results=results, scores=scores or [], published=published, out=out)


@app.command("numbers")
def report_numbers(
    out: Out, tables: Annotated[list[Path], typer.Argument(help="Tables as CSV")]
) -> None:
    """A LaTeX macro that gives every number of the tables by its name."""
    from helixbench.report import latex_numbers

    latex_numbers.run(tables, out)


@app.command("summary")
def report_summary(config: ConfigFile, out: Out, scores: Scores = None) -> None:
    """Averages of all scores as JSON, for `dvc metrics`."""
    from helixbench.report import summary

    summary.run(read_slice(config), scores=scores or [], out=out)


@app.command("page")
def report_page(
    config: ConfigFile,
    results: Results,
    out: Out,
    tables: Annotated[list[Path] | None, typer.Option(help="Table as an HTML fragment")] = None,
    figures: Annotated[list[Path] | None, typer.Option(help="Figure as PNG")] = None,
) -> None:
    """One HTML page that needs no network: tables, figures, pairs, provenance."""
    from helixbench.report import page

    values = read_slice(config)
    page.run(values, results=results, tables=tables or [], figures=figures or [], out=out)


@app.command("measured")
def report_measured(
    results: Annotated[Path, typer.Argument(help="Run folder, e.g. results/bottle")],
    out: Out,
    command: Annotated[str, typer.Option(help="Command that made the run")],
) -> None:
    """Scores and costs of a run as one CSV for results/measured/."""
    import datetime

    from helixbench.report import run_csv

    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    run_csv.run(results, out, command=command, date=today)
