"""Kinds of methods by the name that `kind` has in params.yaml."""

from __future__ import annotations

from importlib import import_module

from helixbench.errors import UserError
from helixbench.methods.method import Method
from helixbench.schema import outside_class

_KINDS = {
    "dhdiff": ("helixbench.methods.dhdiff.method", "DHDiffMethod"),
    "crop_paste": ("helixbench.methods.crop_paste", "CropPasteMethod"),
    "draem": ("helixbench.methods.draem", "DraemMethod"),
    "cutpaste": ("helixbench.methods.cutpaste", "CutPasteMethod"),
    "nsa": ("helixbench.methods.nsa", "NsaMethod"),
    "dualanodiff": ("helixbench.methods.dualanodiff.method", "DualAnoDiffMethod"),
    "stage": ("helixbench.methods.stage.method", "StageMethod"),
    "anomalydiffusion": ("helixbench.methods.anomalydiffusion", "AnomalyDiffusionMethod"),
    "realnet": ("helixbench.methods.realnet", "RealNetMethod"),
    "dfmgan": ("helixbench.methods.dfmgan.method", "DFMGANMethod"),
}


def method_class(kind: str) -> type[Method]:
    """Class of a kind, or the one that `package.module:Class` names; imported only when asked
    for.
    """
    if ":" in kind:
        try:
            found = outside_class(kind)
        except ValueError as error:
            raise UserError(str(error)) from None
        if not issubclass(found, Method):
            raise UserError(f"{kind}: not a subclass of helixbench.methods.method.Method")
        return found
    module, name = _KINDS[kind]
    return getattr(import_module(module), name)
