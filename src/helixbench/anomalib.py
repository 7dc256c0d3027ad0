"""Pairs of a run inside anomalib: a datamodule, and a generator of anomalies.

from anomalib.engine import Engine
from anomalib.models import Supersimplenet
from helixbench.anomalib import HelixPairs

data = HelixPairs("results/mine/prepare/Mine/gear", "results/mine/generate/dhdiff/Mine/gear")
Engine(max_epochs=10).fit(Supersimplenet(supervised=True), datamodule=data)
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

# anomalib's own imports warn of its and timm's deprecated names.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    from anomalib.data.datamodules.base.image import AnomalibDataModule
    from anomalib.data.datasets.base.image import AnomalibDataset
    from pandas import DataFrame
    from torch import nn
    from torch.nn import functional as F

from helixbench.generate.export import Item, items
from helixbench.pictures.prepared import load_pairs, pair_images, pair_masks
from helixbench.records import GOOD


class _Pictures(AnomalibDataset):
    """anomalib's own tables refuse anomalous pictures for training."""

    def __init__(self, found: list[Item], split: str):
        super().__init__()
        rows = [
            {
                "image_path": str(item.image),
                "label": "normal" if item.defect == GOOD else "abnormal",
                "label_index": int(item.defect != GOOD),
                "mask_path": str(item.mask or ""),
                "split": split,
                "defect": item.defect,
            }
            for item in found
        ]
        table = DataFrame(rows)
        table.attrs["task"] = "segmentation"
        self.samples = table


class HelixPairs(AnomalibDataModule):
    """Normals and pairs past the mask gate to train on, held-out real pictures to test on.

    Args:
        prepared: folder written by `prepare`, e.g. results/mine/prepare/Mine/gear.
        pairs: folder written by `generate`, of the same category.
        train_batch_size, eval_batch_size, num_workers: of the loaders.
        **options: of anomalib's `AnomalibDataModule`, e.g. train_augmentations or val_split_mode,
            which is `none` by default: a validation on the test pictures would choose by them.

    Raises UserError for folders that do not belong together, and for altered pairs.
    """

    def __init__(
        self,
        prepared: str | Path,
        pairs: str | Path,
        train_batch_size: int = 8,
        eval_batch_size: int = 8,
        num_workers: int = 0,
        **options: Any,
    ):
        options = {"test_split_mode": "from_dir", **options}
        super().__init__(train_batch_size, eval_batch_size, num_workers, **options)
        self.prepared, self.pairs = Path(prepared), Path(pairs)

    def _setup(self, _stage: str | None = None) -> None:
        found = items(self.prepared, self.pairs)
        self.train_data = _Pictures([i for i in found if i.kind in ("train", "pair")], "train")
        self.test_data = _Pictures([i for i in found if i.kind == "test"], "test")

    def val_dataloader(self) -> Any:
        """None where there is no validation; anomalib's own would fail."""
        return super().val_dataloader() if hasattr(self, "val_data") else []


class PairAugmenter(nn.Module):
    """Where anomalib's `PerlinAnomalyGenerator` stands, e.g. `Draem().augmenter`: defects of pairs
    instead of noise.

    Args:
        pairs: folder written by `generate`; pairs past the mask gate are taken.
        probability: share of pictures that get a defect, in [0, 1].
    """

    def __init__(self, pairs: str | Path, probability: float = 0.5):
        super().__init__()
        folder, self.probability = Path(pairs), probability
        used = [pair for pair in load_pairs(folder) if pair.gate == "ok"]
        images = torch.from_numpy(pair_images(folder, used)).permute(0, 3, 1, 2)
        self.register_buffer("images", images.contiguous(), persistent=False)
        masks = torch.from_numpy(pair_masks(folder, used))[:, None]
        self.register_buffer("masks", masks, persistent=False)

    def forward(self, img: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures (B, 3, H, W) in [0, 1] -> the same with the masked pixels of random pairs, and
        their masks (B, 1, H, W) in {0, 1}.
        """
        chosen = torch.randint(len(self.images), (len(img),), device=self.images.device)
        shown = torch.rand(len(img), 1, 1, 1, device=img.device) < self.probability
        size = img.shape[2:]
        defects = F.interpolate(self.images[chosen].to(img) / 255, size, mode="bilinear")
        masks = F.interpolate(self.masks[chosen].to(img), size) > 0.5
        masks = masks & shown
        return torch.where(masks, defects, img), masks.to(img)
