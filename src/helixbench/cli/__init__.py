"""The console script `helixbench`; the only room that imports across rooms.

`workflow.py` has one thin command per rule of the workflow, `report.py` those of its last stage,
`judge.py` and `tools.py` what a person calls by hand. Rooms are imported inside the commands, so
that `--help` loads neither torch nor the schema.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from helixbench import __version__
from helixbench.cli import judge, report, tools, workflow
from helixbench.errors import UserError, storage_line

app = typer.Typer(
    name="helixbench",
    help="Few-shot industrial anomaly generation: prepare, train, generate, score, detect, report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # boxes around the help text would double the time until it is there
)
for commands in (workflow.app, tools.app, judge.app):
    app.add_typer(commands)
app.add_typer(report.app, name="report")
app.add_typer(tools.fetch_app, name="fetch")
app.add_typer(tools.export_app, name="export")
app.add_typer(tools.config_app, name="config")


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
        bool, typer.Option("--debug", help="Show tracebacks for errors of the input as well.")
    ] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    if debug:
        os.environ["HELIXBENCH_DEBUG"] = "1"


def main() -> None:
    """Run the console script.

    A UserError is printed as one line, UserErrors as one line per problem, a full or read-only disk
    as one line; the exit code is then 2.
    """
    try:
        app()
    except Exception as error:
        disk = None if isinstance(error, UserError) else storage_line(error)
        if os.environ.get("HELIXBENCH_DEBUG") or not (disk or isinstance(error, UserError)):
            raise
        for line in [disk] if disk else getattr(error, "lines", [error]):
            print(f"helixbench: {' '.join(str(line).splitlines())}", file=sys.stderr)
        sys.exit(2)
