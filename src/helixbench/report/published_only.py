"""Methods of the paper's tables that are published columns alone here, and why none is rebuilt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Only:
    """Where a method is from, and why it is not rebuilt here."""

    source: str
    reason: str


_NOT_IN = "not in anomalib, from which the comparators here are taken"
_NO_MASKS = "a GAN that makes pictures without masks: no detector can be trained on them"

PUBLISHED_ONLY = {
    "DiffAug": Only("Zhao et al., NeurIPS 2020", _NO_MASKS),
    "CDC": Only("Ojha et al., CVPR 2021", f"{_NO_MASKS}; it starts from a GAN of another domain"),
    "SDGAN": Only("Niu et al., TASE 2020", f"{_NO_MASKS}; no public code known"),
    "DefectGAN": Only("Zhang et al., WACV 2021", f"{_NO_MASKS}; no public code known"),
    "RealNet": Only(
        "Zhang et al., CVPR 2024",
        f"the column is its whole detector, {_NOT_IN}; its synthesis runs as `realnet`",
    ),
    "DTD": Only(
        "Cimpoi et al., CVPR 2014",
        "textures, not a detector: the paper does not say which one the column is; `draem` pastes "
        "them",
    ),
    "CutPaste": Only(
        "Li et al., CVPR 2021",
        f"the column is its whole detector, {_NOT_IN}; its synthesis runs as `cutpaste`",
    ),
    "SSPCAB": Only(
        "Ristea et al., CVPR 2022",
        "a block for other detectors: the paper does not say which one has it",
    ),
    "DevNet": Only(
        "Pang et al., 2021",
        "learns from a few labelled real defects, neither from pairs nor from normals alone",
    ),
    "ReDi": Only("Xing et al., SCIS 2025", f"{_NOT_IN}"),
    "PRN": Only(
        "Zhang et al., CVPR 2023",
        "no code of its authors known; an unofficial one stays far below the paper",
    ),
    "SPADE": Only("Cohen and Hoshen, 2020", f"{_NOT_IN}; PatchCore and PaDiM follow it"),
    "DAGAN": Only("Tang et al., Sensors 2020", f"{_NOT_IN}"),
    "Skip-GANomaly": Only("Akcay et al., IJCNN 2019", f"{_NOT_IN}"),
    "SimpleNet": Only(
        "Liu et al., CVPR 2023",
        f"{_NOT_IN}; its successor runs as `supersimplenet`",
    ),
    "DDAD": Only("Mousakhan et al., 2023", f"{_NOT_IN}; a diffusion model per category"),
    "GLAD": Only("Yao et al., ECCV 2024", f"{_NOT_IN}; a diffusion model per category"),
    "ComAD": Only("Liu et al., AEI 2023", f"{_NOT_IN}; made for logical anomalies alone"),
}
"""By the name of the published column."""


def remark(methods: Iterable[str]) -> str:
    """The line below a table whose published columns are these; empty without such a method."""
    only = [name for name in methods if name in PUBLISHED_ONLY]
    return f"Published only: {', '.join(only)}; docs/comparators.md says why." if only else ""


def rows(columns: Iterable[tuple[str, Iterable[str]]]) -> list[str]:
    """Rows of the documentation's table. columns: of each table its number and its methods."""
    tables: dict[str, list[str]] = {}
    for number, methods in columns:
        for name in methods:
            tables.setdefault(name, []).append(number)
    cells = [
        (name, ", ".join(tables.get(name, ())), only.source, only.reason)
        for name, only in PUBLISHED_ONLY.items()
    ]
    return [f"| {' | '.join(row)} |" for row in cells]
