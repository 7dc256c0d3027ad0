"""Commands that a person calls by hand, without the workflow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from helixbench.cli.common import Threads, quick_imports, set_threads
from helixbench.errors import UserError

app = typer.Typer()
fetch_app = typer.Typer(
    help="Download what is not in the repository, with checksums.", no_args_is_help=True
)
config_app = typer.Typer(help="The configuration and its schema.", no_args_is_help=True)


@app.command()
def sample(
    model: Annotated[Path, typer.Option(help="Folder of a trained DH-Diff")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the pairs")],
    prompt: Annotated[
        str | None, typer.Option(help='Text, e.g. "a photo of a bottle with broken_large"')
    ] = None,
    defect: Annotated[
        str | None, typer.Option(help="Defect type instead of a prompt; what --control is about")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Picture that the reference is cut from")
    ] = None,
    raw_mask: Annotated[
        str | None, typer.Option(help="Cells of the defect, e.g. 5x5:1,7, or a mask file")
    ] = None,
    control: Annotated[
        Path | None, typer.Option(help="Drawn mask or sketch, bright on dark")
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(help="Where the defect is: x,y from 0 to 1; repeat for more"),
    ] = None,
    number: Annotated[int, typer.Option("--number", "-n", help="Pairs to make")] = 1,
    seed: Annotated[int, typer.Option(help="Root seed of the pairs")] = 0,
    steps: Annotated[int, typer.Option(help="Denoising steps")] = 50,
    guidance: Annotated[float, typer.Option(help="Guidance scale")] = 2.5,
    sampler: Annotated[str, typer.Option(help="ddim or dpmsolver++")] = "ddim",
    prepared: Annotated[
        Path | None,
        typer.Option(help="Folder written by `prepare`, from whose masks the gate learns"),
    ] = None,
    threads: Threads = None,
) -> None:
    """Make image+mask pairs by hand from a trained DH-Diff."""
    set_threads(threads)
    with quick_imports():
        from helixbench.generate import by_hand
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


@app.command("import")
def import_pictures(
    root: Annotated[
        Path, typer.Argument(help="Raw folder: holds one folder per category, or is one")
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
    """Check and describe raw pictures, or say all that is wrong.

    Prints a summary; writes a manifest and a contact sheet where asked to.
    """
    from helixbench.prepare import importing

    importing.run(layout, root, out=out, report=report, dataset=dataset)


@app.command()
def gpus(
    expect: Annotated[int, typer.Option(min=0, help="How many this job asked for")] = 1,
) -> None:
    """Print the GPUs that this job sees; fail if one is missing."""
    from helixbench.engine import devices

    print("\n".join(devices.check_gpus(expect)))


@app.command()
def verify(
    results: Annotated[Path, typer.Argument(help="Run folder, e.g. results/bottle")],
) -> None:
    """Check that a run is still what its stages wrote."""
    from helixbench.report import verify as check

    check.run(results)


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
        if name not in weights.URLS:
            raise UserError(f"{name}: no such network; there are {', '.join(weights.URLS)}")
        fetch.scoring_weights(name)


@fetch_app.command("textures")
def fetch_textures(
    out: Annotated[Path, typer.Argument(help="Folder to put them in")],
) -> None:
    """Freely licensed textures of Debian 12's packages (4 GB to load), for train.joint.photos."""
    from helixbench.datasets.world import sources

    sources.collect(out)


@config_app.command("check")
def config_check(
    files: Annotated[list[Path], typer.Argument(help="params.yaml and overlays")],
) -> None:
    """Validate a configuration."""
    from helixbench.config import load

    load(*files)


@config_app.command("write")
def config_write(
    root: Annotated[Path, typer.Option(help="Folder of the project")] = Path(),
) -> None:
    """Write params.yaml and its JSON schema from the classes of the settings."""
    from helixbench.config import json_schema
    from helixbench.provenance import write_json, write_text
    from helixbench.schema.params import SCHEMA, params_yaml

    if not (root / SCHEMA).parent.is_dir():
        raise UserError(f"{root / SCHEMA}: no such folder; give the project's by --root")
    write_text(root / "params.yaml", params_yaml())
    write_json(root / SCHEMA, json_schema())
