"""Kinds of methods by the name that `kind` has in params.yaml."""

from __future__ import annotations

from importlib import import_module

from helixbench.methods.method import Method

_KINDS = {
    "dhdiff": ("helixbench.methods.dhdiff.method", "DHDiffMethod"),
    "crop_paste": ("helixbench.methods.crop_paste", "CropPasteMethod"),
    "draem": ("helixbench.methods.draem", "DraemMethod"),
    "cutpaste": ("helixbench.methods.cutpaste", "CutPasteMethod"),
    "nsa": ("helixbench.methods.nsa", "NsaMethod"),
    "dualanodiff": ("helixbench.methods.dualanodiff.method", "DualAnoDiffMethod"),
    "stage": ("helixbench.methods.stage.method", "StageMethod"),
}


def method_class(kind: str) -> type[Method]:
    """Class of a kind; imported only when asked for."""
    module, name = _KINDS[kind]
    return getattr(import_module(module), name)
