"""Commands that a person calls by hand, without the workflow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from helixbench.cli.common import Bits, Out, Pairs, Prepared, Threads, quick_imports, set_threads
from helixbench.errors import UserError

app = typer.Typer()
fetch_app = typer.Typer(
    help="Download what is not in the repository, with checksums.", no_args_is_help=True
)
export_app = typer.Typer(
    help="Results in the formats of other tools, checked.", no_args_is_help=True
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


@app.command()
def predict(
    detector: Annotated[
        Path, typer.Option(help="Folder written by `detect`, e.g. .../bottle/seed0")
    ],
    pictures: Annotated[list[Path], typer.Argument(help="Pictures, and folders of pictures")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for maps, overlays and tables")],
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Score above which a picture is defective, by hand"),
    ] = None,
    false_alarms: Annotated[
        float | None,
        typer.Option(help="Rate of false alarms to promise, e.g. 0.01, instead of that of the run"),
    ] = None,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(help="Normal pictures that trained nothing, to choose the threshold on"),
    ] = None,
    classifier: Annotated[
        Path | None,
        typer.Option(help="Folder written by `classify`; otherwise that of the same run, if any"),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first file that cannot be read")
    ] = False,
    threads: Threads = None,
) -> None:
    """Score pictures with a trained detector: maps, scores, verdicts.

    The exit code is 1 where files could not be read and were left out.
    """
    if threshold is not None and (false_alarms is not None or calibrate):
        raise UserError(
            "predict: --threshold leaves nothing to choose for --false-alarms or --calibrate"
        )
    if false_alarms is not None and not 0 < false_alarms < 1:
        raise UserError(f"--false-alarms {false_alarms}: a share between 0 and 1, e.g. 0.05")
    set_threads(threads)
    with quick_imports():
        from helixbench.detect import predict as detection
    chosen = {"threshold": threshold, "rate": false_alarms, "normals": calibrate or ()}
    bad = detection.run(detector, pictures, out, **chosen, classifier=classifier, strict=strict)
    for line in bad:
        print(f"helixbench: left out: {line}", file=sys.stderr)
    if bad:
        raise typer.Exit(1)


@app.command("import")
def import_pictures(
    root: Annotated[
        Path, typer.Argument(help="Raw folder: holds one folder per category, or is one")
    ],
    layout: Annotated[
        str | None, typer.Option(help="Raw folder layout; `folder`: pictures of your own")
    ] = None,
    annotations: Annotated[
        str | None,
        typer.Option(
            help="Instead of a layout: coco, labelme, yolo (segmentation) or labels (label masks, "
            "Pascal VOC); makes masks beside --out, a manifest in the folder itself"
        ),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Values of label masks, e.g. 1=scratch,2=dent")
    ] = None,
    ignore: Annotated[
        list[int] | None, typer.Option(help="Value of label masks that means nothing, e.g. 255")
    ] = None,
    boxes: Annotated[bool, typer.Option("--boxes", help="Take boxes as masks")] = False,
    out: Annotated[Path | None, typer.Option(help="Manifest (CSV) to write")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Contact sheet (PNG) with mask outlines to write")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Name of the data set in the manifest")
    ] = None,
    bits: Bits = None,
    group: Annotated[
        str | None,
        typer.Option(
            help="What one object is: a column of the manifest, or a pattern over the paths with "
            "parentheses around what counts"
        ),
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="Defect type to leave out; repeat for each")
    ] = None,
) -> None:
    """Check and describe raw pictures, or say all that is wrong.

    Prints a summary; writes a manifest and a contact sheet where asked to.
    """
    from helixbench.prepare import importing
    from helixbench.schema.prepare import check_pattern

    if group:
        try:
            check_pattern(group)
        except ValueError as error:
            raise UserError(f"--group {group}: {error}") from None
    chosen = {"group": group, "without": tuple(without or ()) or None}
    options = {"report": report, "dataset": dataset, "bits": bits, **chosen}
    if (layout is None) == (annotations is None):
        raise UserError("import: give --layout or --annotations, one of the two")
    if annotations != "labels" and (labels or ignore):
        raise UserError("import: --labels and --ignore are for --annotations labels")
    if annotations is None:
        if boxes:
            raise UserError("import: --boxes is for --annotations")
        importing.run(layout, root, out=out, **options)
        return
    if out is None:
        raise UserError(f"import: --annotations needs --out, e.g. {root / 'manifest.csv'}")
    from helixbench.prepare import annotations as converting

    said = converting.Options(_labels(labels), tuple(ignore or ()), boxes)
    converting.run(annotations, root, out, said, **options)


def _labels(text: str | None) -> dict[int, str]:
    """`1=scratch,2=dent` as a mapping."""
    found = {}
    for part in filter(None, (text or "").split(",")):
        value, _, name = part.partition("=")
        if not value.strip().isdecimal() or not name.strip() or int(value) in found:
            raise UserError(f"--labels {part}: write value=name, each value once: 1=scratch,2=dent")
        found[int(value)] = name.strip()
    return found


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


@export_app.command("detector")
def export_detector(
    detector: Annotated[
        Path, typer.Option(help="Folder written by `detect`, e.g. .../bottle/seed0")
    ],
    pictures: Annotated[
        list[Path],
        typer.Argument(help="Real pictures, and folders of them, to compare with torch on"),
    ],
    out: Out,
    openvino: Annotated[bool, typer.Option("--openvino", help="Write OpenVINO's, too")] = False,
    licence: Annotated[
        str | None, typer.Option(help="Of the pictures that the detector learned from")
    ] = None,
    threads: Threads = None,
) -> None:
    """A trained detector as ONNX, with a model card and an example."""
    set_threads(threads)
    with quick_imports():
        from helixbench.detect import export
    export.run(detector, pictures, out, openvino=openvino, licence=licence)


@export_app.command("pairs")
def export_pairs(
    prepared: Prepared,
    pairs: Pairs,
    out: Out,
    to: Annotated[str, typer.Option(help="anomalib or coco")],
) -> None:
    """Pairs, normals and held-out pictures for anomalib, or as COCO."""
    from helixbench.generate import export

    if to not in ("anomalib", "coco"):
        raise UserError(f"export pairs --to {to}: there are anomalib and coco")
    export.run(prepared, pairs, out, to)


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
