"""Pairs laid into the normal that they were drawn from."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt


def composite(
    images: torch.Tensor, backgrounds: torch.Tensor, masks: torch.Tensor, reach: float
) -> torch.Tensor:
    """Generated pictures in and near their masks, and the normal elsewhere: (n, 3, H, W) in [0, 1].

    The weight of a generated pixel is 1 in the mask and falls linearly to 0 at `reach` times the
    height away from it; where a mask is empty, all is the normal.

    Args:
        images: generated pictures (n, 3, H, W) in [0, 1].
        backgrounds: their normals, alike.
        masks: (n, 1, H, W) in {0, 1}.
        reach: share of the height, above 0.
    """
    width = reach * images.shape[-2]
    weights = [
        np.clip(1 - distance_transform_edt(~mask) / width, 0, 1)
        if mask.any()
        else np.zeros(mask.shape)
        for mask in masks[:, 0].numpy() > 0.5
    ]
    weight = torch.from_numpy(np.stack(weights)).float()[:, None]
    return backgrounds + weight * (images - backgrounds)
