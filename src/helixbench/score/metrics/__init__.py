"""The metrics of pairs, one file each (docs/extend.md): `METRICS`, what there is to know about
its numbers, and `measure(case)`, which gives them for one defect type.

No file here imports torch when it is imported, so that a report may ask for the facts alone.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from types import ModuleType

from helixbench.catalogue import Metric


def modules() -> list[ModuleType]:
    """The files of this folder, by name."""
    names = sorted(info.name for info in pkgutil.iter_modules(__path__))
    return [import_module(f"{__name__}.{name}") for name in names]


def catalogue() -> list[Metric]:
    """Facts about all metrics of pairs."""
    return [metric for module in modules() for metric in module.METRICS]
