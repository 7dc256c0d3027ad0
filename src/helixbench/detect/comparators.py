"""Anomaly detectors that learn from normals alone (Tables IV to VII), as anomalib has them.

They see the same normals and test pictures as the detectors that learn from pairs, at the same
size, and are scored by the same metrics. What is anomalib's: networks, losses, optimizers, anomaly
maps, image scores. What is ours: the settings of their papers (params.yaml), the features' weights,
resume. docs/comparators.md lists where they differ from their papers.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

# anomalib's own imports warn of its and timm's deprecated names.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning.pytorch as pl
    import numpy as np
    import torch
    from anomalib.data import ImageBatch
    from anomalib.models import EfficientAd
    from anomalib.models.components.base import AnomalibModule
    from lightning.pytorch.utilities.types import STEP_OUTPUT
    from torchvision.transforms.functional import normalize

from helixbench import schema, weights
from helixbench.config import Slice, digest
from helixbench.detect.anomalib_models import build, start
from helixbench.detect.detector import Detector, Job, Metrics, settings
from helixbench.detect.held_out import HeldOut, Reading
from helixbench.errors import UserError
from helixbench.protocol import Protocol
from helixbench.provenance import sha256, write_atomic, write_text
from helixbench.records import derive_seed

log = logging.getLogger(__name__)
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # devices, and advice

_TOO_SMALL = (
    "Kernel size can't be greater",
    "Expected more than 1 value",
    "enough fibers",
    "must match the size of tensor b (0)",
)
"""What torch and anomalib say of pictures, or batches of them, that are too small for a network."""

_BATCH = 8
"""Pictures that are predicted together."""

_TOLD = ("backbone", "weights", "size", "teacher", "imagenet", "textures")
"""Settings that `Comparator.protocol` puts into facts of other names."""


class _Order(torch.utils.data.Sampler):
    """Shuffles by the number of the epoch, which Lightning tells, so that a resumed training goes
    through the same batches.
    """

    def __init__(self, count: int, seed: int):
        self.count, self.seed, self.epoch = count, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        rng = torch.Generator().manual_seed(derive_seed(self.seed, "order", self.epoch))
        return iter(torch.randperm(self.count, generator=rng).tolist())

    def __len__(self) -> int:
        return self.count


class Normals(pl.LightningDataModule):
    """Normal pictures (n, H, W, 3) uint8 as anomalib's batches of them: (B, 3, H, W) float32 in [0,
    1].

    network: whose channels' mean and deviation they are normalised by instead, if any.
    """

    def __init__(self, images: np.ndarray, batch: int, seed: int, network: str | None):
        super().__init__()
        self.images, self.train_batch_size = images, batch
        self.seed, self.network = seed, network

    def batch(self, images: np.ndarray) -> ImageBatch:
        """Pictures (B, H, W, 3) uint8 as a batch of normals."""
        x = torch.from_numpy(np.stack(list(images))).permute(0, 3, 1, 2).contiguous().float() / 255
        if self.network:
            x = normalize(x, *weights.normalisation(self.network))
        empty = torch.zeros(len(x), *x.shape[2:], dtype=torch.bool)
        return ImageBatch(image=x, gt_label=torch.zeros(len(x), dtype=torch.bool), gt_mask=empty)

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        """All of them once, in the epoch's order."""
        order = _Order(len(self.images), self.seed)
        return torch.utils.data.DataLoader(
            self.images, self.train_batch_size, sampler=order, collate_fn=self.batch
        )


class _Journal(pl.Callback):
    """Seeds each epoch, stops at a loss that is not finite, writes stats.jsonl and, once a minute,
    the resume state.
    """

    every_s = 60.0

    def __init__(self, name: str, seed: int, file: Path):
        self.name, self.seed, self.file = name, seed, file
        self.saved, self.losses = time.monotonic(), []

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        pl.seed_everything(
            derive_seed(self.seed, "epoch", trainer.current_epoch) % 2**32, verbose=False
        )
        self.losses = []

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: ImageBatch,
        index: int,
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        self.losses.append(float(loss))
        if not math.isfinite(self.losses[-1]):
            raise UserError(
                f"{self.name}: the loss is {self.losses[-1]} at step {trainer.global_step}; last "
                f"good checkpoint: {self.file}"
            )

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        epoch, loss = trainer.current_epoch + 1, np.mean(self.losses)
        row = f'{{"step": {trainer.global_step}, "epoch": {epoch}, "loss": {loss:.6g}}}\n'
        stats = self.file.with_name("stats.jsonl")
        rows = stats.read_text(encoding="utf-8").splitlines(keepends=True) if epoch > 1 else []
        write_text(stats, "".join(rows[: epoch - 1]) + row)
        if time.monotonic() - self.saved >= self.every_s:
            log.info("%s: epoch %d, loss %.4g", self.name, epoch, loss)
            write_atomic(self.file, trainer.save_checkpoint)
            write_text(_vouching(self.file), sha256(self.file))
            self.saved = time.monotonic()


def _vouching(file: Path) -> Path:
    """File that holds the sha256 of a resume state."""
    return file.with_suffix(".sha256")


def resumable(file: Path) -> Path | None:
    """The resume state, if it is there as it was written; a damaged one is removed with a
    warning.
    """
    if not file.is_file():
        return None
    known = _vouching(file)
    if known.is_file() and known.read_text(encoding="utf-8", errors="replace") == sha256(file):
        return file
    log.warning("%s: not as it was written; the training starts anew", file)
    file.unlink()
    return None


def fit(
    module: AnomalibModule,
    config: schema.Comparator,
    normals: Normals,
    name: str,
    file: Path,
    device: torch.device,
) -> None:
    """Train on normals, resuming from the last epoch that was saved in `file`; stats.jsonl is
    written beside it.

    Raises UserError for a loss that is not finite, and with anomalib's words for pictures that are
    too small for a network.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    length = (
        {"max_steps": config.steps, "max_epochs": -1}
        if hasattr(config, "steps")
        else {"max_epochs": getattr(config, "epochs", 1)}
    )
    place = (
        {"accelerator": "gpu", "devices": [device.index or 0]}
        if device.type == "cuda"
        else {"accelerator": "cpu", "devices": 1}
    )
    arguments = {
        **module.trainer_arguments,
        **length,
        **place,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "callbacks": [_Journal(name, normals.seed, file)],
        "default_root_dir": file.parent,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of workers, loggers and steps that are not wanted here
        trainer = pl.Trainer(**arguments)
        try:
            trainer.fit(module, datamodule=normals, ckpt_path=resumable(file))
        except (RuntimeError, ValueError) as error:
            if any(words in str(error) for words in _TOO_SMALL):
                raise UserError(
                    f"{name}: pictures of {normals.images.shape[1]} pixel are too small for it "
                    f"({error})"
                ) from None
            raise


class Maps(NamedTuple):
    """Anomaly maps (n, H, W) and image scores (n,) of pictures, of any range; higher is more
    anomalous.
    """

    maps: np.ndarray
    scores: np.ndarray


@torch.no_grad()
def predict(
    module: AnomalibModule, normals: Normals, images: np.ndarray, device: torch.device
) -> Maps:
    """What a trained detector says of pictures (n, H, W, 3) uint8."""
    module.to(device).eval()
    if isinstance(module, EfficientAd):
        # Its maps are scaled by quantiles over normals; anomalib takes a validation set, this every
        # tenth of the normals.
        loader = [normals.batch(normals.images[::10])]
        module.model.quantiles.update(module.map_norm_quantiles(loader))
    maps, scores = [], []
    for i in range(0, len(images), _BATCH):
        output = module.model(normals.batch(images[i : i + _BATCH]).image.to(device))
        maps.append(output.anomaly_map.float().reshape(-1, *images.shape[1:3]).cpu().numpy())
        scores.append(output.pred_score.float().reshape(-1).cpu().numpy())
    return Maps(np.concatenate(maps), np.concatenate(scores))


class Comparator(Detector[Maps]):
    """One of the detectors; job.method: its key under `detect.comparators`.

    config: `detect.comparators.<key>`, `run.seed` and, of `detect.localization`, `ground_truth`,
    `pro_limit` and `pro_thresholds`. Writes curves.csv and predictions.png beside the scores.
    """

    kind = "comparator"

    def __init__(self, job: Job, config: Slice):
        section = config[f"detect.comparators.{job.method}"]
        super().__init__(job, config, section, self.kind, job.method)
        self.name = section.kind
        localization = "detect.localization."
        self.reading = Reading(
            *(
                config[localization + name]
                for name in ("ground_truth", "pro_limit", "pro_thresholds")
            )
        )
        self.tests = HeldOut.read(job.prepared, self.samples, self.reading)
        network = start(section)[0] if hasattr(section, "backbone") else None
        self.normals = Normals(self.read_normals(), section.batch, self.seed, network)
        self.size = self.normals.images.shape[1]
        self.pictures = {"normals": len(self.normals.images), "test": len(self.tests.samples)}

    @property
    def title(self) -> str:
        """Its label and the category."""
        return f"{self.section.label} {self.job.dataset}/{self.job.category}"

    def train(self) -> dict[str, float]:
        """Train on normals by anomalib's own loop."""
        files = [self.job.prepared / s.image for s in self.samples if s.role == "normal"]
        self.module = build(self.section, self.size, self.seed, files)
        pixels = hashlib.sha256(self.normals.images.tobytes()).hexdigest()
        settings_ = self.section.model_dump(mode="json")
        shape = self.normals.images.shape
        known = [settings_, self.normals.network, self.seed, shape, pixels, version("anomalib")]
        identity = digest(known)
        file, started = self.job.state / f"{identity}.ckpt", time.monotonic()
        fit(self.module, self.section, self.normals, self.title, file, self.device)
        seconds = round(time.monotonic() - started, 1)
        return {"steps": int(self.module.trainer.global_step), "seconds": seconds}

    def predict(self) -> Maps:
        """Maps and scores of the test pictures."""
        return predict(self.module, self.normals, self.tests.images, self.device)

    def measure(self, predictions: Maps) -> Metrics:
        """As of localization."""
        return self.tests.measure(*predictions)

    def write(self, predictions: Maps) -> None:
        """out/predictions.png, its colours spread over the values, and out/curves.csv."""
        ends = float(predictions.maps.min()), float(predictions.maps.max())
        self.tests.write(self.job.out, *predictions, display=ends)

    def protocol(self, checkpoint_name: str = "last") -> Protocol:
        """With the facts of the network, its weights and the pictures it learns from."""
        section = self.section
        facts: dict[str, Any] = {"method": section.label, "anomalib": version("anomalib")}
        facts |= settings(section, "kind", "label", "seeds", *_TOLD)
        facts |= {"batch": section.batch, **self.reading.facts()}
        if hasattr(section, "backbone"):
            network, begin = start(section)
            facts |= {"network": network, "weights": begin}
            if begin == "imagenet":
                file = Path(weights.FILES[network])
                facts["weights_hash"] = file.stem.rpartition("-")[2]
        if isinstance(section, schema.EfficientAd):
            facts["network"] = f"pdn_{section.size}"
            facts["teacher"] = "published" if section.teacher else "random"
            facts["imagenet_penalty"] = bool(section.imagenet)
        if isinstance(section, schema.DraemDetector):
            facts["textures"] = Path(section.textures).name or "normals"
        return super().protocol(checkpoint_name).having(**facts)
