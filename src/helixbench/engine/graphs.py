"""A network's passes as CUDA graphs: all their kernels in one launch."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import nn

log = logging.getLogger(__name__)


def graphed(module: nn.Module, inputs: Sequence[torch.Tensor]) -> nn.Module:
    """The module, whose forward and backward pass on a GPU are captured for inputs like these.

    A small network computes faster than its thousands of kernels can be launched one by one. Its
    inputs must then keep their shapes, its gradients must not be accumulated over passes, and the
    autocast of this call is that of all later ones. A module that cannot be captured is told, and
    stays as it is; so does every module on another device.
    """
    if inputs[0].device.type != "cuda":
        return module
    samples = tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in inputs)
    kind, on = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
    try:
        # A cached half-precision copy of a weight would be captured instead of the weight.
        with torch.autocast("cuda", kind, enabled=on, cache_enabled=False):
            return torch.cuda.make_graphed_callables(module, samples, allow_unused_input=True)
    except RuntimeError as error:
        torch.cuda.synchronize()
        log.warning("no CUDA graph: %s", " ".join(str(error).split())[:300])
        return module
