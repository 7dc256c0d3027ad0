"""`helixbench judge`: pairs from elsewhere, measured with the scores and the detector of this
benchmark.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from helixbench.cli.common import Threads, quick_imports, set_threads
from helixbench.errors import UserError

if TYPE_CHECKING:
    from helixbench.config import Slice

app = typer.Typer()

DEFAULTS = {
    "score": {"inception_score": {"network": "auto"}, "ic_lpips": {"network": "auto"}},
    "detect": {
        "localization": {
            "optim": {"steps": 12500, "batch": 8, "lr": 1e-4, "decay": "multistep"},
        }
    },
    "generate": {"gate": {}},
}
"""The sections that --settings may change, where they differ from the schema's own defaults."""


def read_settings(file: Path | None, seed: int) -> tuple[Slice, Slice]:
    """Validated configuration slices of `score` and of `detect`.

    file: YAML with the sections score, detect.localization and generate.gate of params.yaml, as far
    as they differ. seed: root seed of the shuffles of the scores. UserError for a file that is not
    readable, an unknown key or an impossible value.
    """
    from helixbench.config import Slice, overlay, read_yaml

    given = read_yaml(file) or {} if file else {}
    given = _known(file, "", given, ("score", "detect", "generate"))
    _known(file, "detect.", given.get("detect", {}), ("localization",))
    _known(file, "generate.", given.get("generate", {}), ("gate",))
    values = overlay(DEFAULTS, given)
    gate = {"generate.gate": values["generate"]["gate"]}
    scoring = Slice({"score": values["score"], "run.seed": seed, **gate})
    training = Slice({"detect.localization": values["detect"]["localization"], "run.seed": 0})
    _ = scoring["score"], scoring["generate.gate"], training["detect.localization"]  # validates
    return scoring, training


def _known(file: Path | None, prefix: str, given: Any, keys: tuple[str, ...]) -> Mapping:
    if not isinstance(given, Mapping):
        raise UserError(f"{file}: {prefix.rstrip('.') or 'not'} a YAML mapping of keys")
    for key in given:
        if key not in keys:
            allowed = ", ".join(f"{prefix}{name}" for name in keys)
            raise UserError(f"{file}: {prefix}{key}: no such key here; there are {allowed}")
    return given


@app.command()
def judge(
    pairs: Annotated[
        Path, typer.Option(help="Pairs: written by `generate`, or in the layout of MVTec AD")
    ],
    normals: Annotated[
        Path | None,
        typer.Option(help="Normal pictures to train on: train/good in it, or the folder itself"),
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option(help="Held-out pictures in the layout of MVTec AD; trains the detector"),
    ] = None,
    real: Annotated[
        Path | None,
        typer.Option(
            help="Real defects that the scores compare with, in the layout of MVTec AD; otherwise "
            "those of --test"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Output folder; otherwise <name>.judged")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="What the generator is called; otherwise the folder of the pairs"),
    ] = None,
    size: Annotated[
        int, typer.Option(help="Working side of all pictures [pixel]", min=32, max=1024)
    ] = 256,
    seed: Annotated[int, typer.Option(help="Seed of the shuffles and of the training")] = 0,
    settings: Annotated[
        Path | None,
        typer.Option(
            help="YAML with what differs of score, detect.localization and generate.gate of "
            "params.yaml"
        ),
    ] = None,
    no_scores: Annotated[
        bool, typer.Option("--no-scores", help="Train and test the detector only")
    ] = False,
    threads: Threads = None,
) -> None:
    """Score any folder of pairs, train a detector on it and test it.

    Writes <out>/scores.csv and <out>/detector/. The same line again resumes a training that was
    killed.
    """
    real = real or test
    if real is None:
        raise UserError("judge: give --test (with --normals) for the detector, --real, or both")
    if test is not None and normals is None:
        raise UserError("judge: --test needs --normals to train the detector on")
    if no_scores and test is None:
        raise UserError("judge: --no-scores leaves the detector only, which needs --test")
    scoring, training = read_settings(settings, seed)
    gate = scoring["generate.gate"]
    name = name or pairs.resolve().name
    out = out or Path(f"{name}.judged")
    set_threads(threads)
    with quick_imports():
        from helixbench.detect.detector import Job
        from helixbench.detect.localization import Localization
        from helixbench.prepare import judge as outside
        from helixbench.score import stage as score

    # All pictures are read, and refused where they must be, before anything is computed.
    with ExitStack() as temporary:
        options = {"name": name, "size": size, "settings": gate}
        if not no_scores:
            scored = temporary.enter_context(
                outside.to_score(pairs, real, normals=normals, **options)
            )
        if test is not None:
            trained = temporary.enter_context(outside.to_detect(pairs, normals, test, **options))
        if not no_scores:
            score.run(
                name,
                outside.DATASET,
                scored.category,
                scoring,
                prepared=scored.prepared,
                pairs=scored.pairs,
                out=out / "scores.csv",
            )
        if test is not None:
            state, folder = out / "detector.state", out / "detector"
            one = (name, outside.DATASET, trained.category, seed)
            job = Job(*one, trained.prepared, trained.pairs, state, folder)
            Localization(job, training).run()
