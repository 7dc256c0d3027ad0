"""What the commands share: arguments with one meaning everywhere, and a quick import."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from helixbench.config import Slice

Dataset = Annotated[str, typer.Argument(help="Data set, as named in params.yaml")]
Category = Annotated[str, typer.Argument(help="Category of the data set")]
Method = Annotated[str, typer.Argument(help="Method key of params.yaml")]
ConfigFile = Annotated[
    Path, typer.Option("--config", help="Configuration slice (JSON) written by the workflow")
]
Prepared = Annotated[Path, typer.Option(help="Folder written by `prepare`")]
Pairs = Annotated[Path, typer.Option(help="Folder written by `generate`")]
State = Annotated[Path, typer.Option(help="Folder for resume state")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Output folder or file")]
Seed = Annotated[int, typer.Option(help="Training seed")]
Bits = Annotated[
    int | None,
    typer.Option(min=9, max=16, help="Bits that the camera uses of files of 16 bits, e.g. 12"),
]
Threads = Annotated[int | None, typer.Option(help="CPU threads")]
Scores = Annotated[list[Path] | None, typer.Option(help="Score file; repeat for each")]
Published = Annotated[Path, typer.Option(help="Folder of the published tables")]
Results = Annotated[Path, typer.Option(help="Run folder, e.g. results/bottle")]


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import packages without looking for garbage, and never look at what they made.

    Importing torch and diffusers makes millions of objects that stay: without this, the imports of
    `detect` and `generate` take 5.1 s of CPU time, with it 3.8 s (best of three, one core).
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


def read_slice(file: Path) -> Slice:
    """The values that a job may read."""
    from helixbench.config import Slice

    return Slice.load(file)


def set_threads(threads: int | None) -> None:
    """CPU threads of this process; None leaves them as they are."""
    from helixbench.engine import devices

    devices.set_threads(threads)
