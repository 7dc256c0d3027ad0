"""U2-Net (Qin et al., Pattern Recognition 2020; Apache-2.0) from an ONNX file: what stands out in a
picture.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional as F

from helixbench.errors import UserError
from helixbench.weights import IMAGENET_MEAN, IMAGENET_STD

SIDE = 320
_MEAN, _STD = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))


class Saliency:
    """The network of `u2net.onnx` as github.com/danielgatis/rembg publishes it, or any with its
    input and first output.
    """

    def __init__(self, file: str | Path):
        """Load; UserError where the file or the package that reads it is missing or damaged."""
        try:
            import onnxruntime
        except ImportError:
            raise UserError(
                "saliency: needs the package onnxruntime; install it (pip install "
                "'helixbench[saliency]')"
            ) from None
        if not Path(file).is_file():
            raise UserError(
                f"{file}: no such file; put u2net.onnx there, or leave `saliency` empty for the "
                f"distance from grey"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own kinds have no common base
            raise UserError(
                f"{file}: not a readable ONNX network ({' '.join(str(error).split())[:200]}); "
                f"fetch it again"
            ) from None
        self.input = self.session.get_inputs()[0].name

    def __call__(self, picture: torch.Tensor) -> torch.Tensor:
        """Saliency (1, H, W) of a picture (3, H, W) in [0, 1], stretched to [0, 1]; zeros for one
        without any difference.
        """
        small = F.interpolate(picture[None], (SIDE, SIDE), mode="bilinear", antialias=True)[0]
        small = (small / small.max().clamp_min(1e-6) - _MEAN) / _STD
        out = torch.from_numpy(self.session.run(None, {self.input: small[None].numpy()})[0])[:, :1]
        low, high = out.min(), out.max()
        stretched = (out - low) / (high - low) if high > low else torch.zeros_like(out)
        return F.interpolate(stretched, picture.shape[1:], mode="bilinear", antialias=True)[0]
