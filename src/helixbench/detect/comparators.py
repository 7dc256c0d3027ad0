"""Anomaly detectors that learn from normals alone (Tables IV to VII), as anomalib has them.

They see the same normals and test pictures as the detectors that learn from pairs, at the same
size, and are scored by the same metrics. What is anomalib's: networks, losses, optimizers, anomaly
maps, image scores. What is ours: the settings of their papers (params.yaml), the features' weights,
resume. docs/comparators.md lists where they differ from their papers.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from unittest import mock

# anomalib's own imports warn of its and timm's deprecated names.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning.pytorch as pl
    import numpy as np
    import torch
    import torchvision
    from anomalib import models
    from anomalib.data import ImageBatch
    from anomalib.models.components.base import AnomalibModule
    from anomalib.models.image.cfa import torch_model as cfa_model
    from anomalib.pre_processing import PreProcessor
    from lightning.pytorch.utilities.types import STEP_OUTPUT
    from torch import nn
    from torchvision.models.feature_extraction import create_feature_extractor
    from torchvision.transforms.v2 import Resize

from helixbench import schema, weights
from helixbench.config import Slice, digest
from helixbench.detect import data, trial
from helixbench.detect.held_out import HeldOut
from helixbench.engine import checkpoint
from helixbench.engine.devices import describe as describe_device
from helixbench.engine.devices import pick_device
from helixbench.errors import UserError
from helixbench.pictures.prepared import read_split
from helixbench.provenance import manifest, write_atomic, write_text
from helixbench.records import ALL, Sample, Score, derive_seed, read_csv, write_csv

log = logging.getLogger(__name__)
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # devices, and advice

_BARE = {"post_processor": False, "evaluator": False, "visualizer": False}
"""Metrics, thresholds and pictures are ours."""

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_TOO_SMALL = (
    "Kernel size can't be greater",
    "Expected more than 1 value",
    "enough fibers",
    "must match the size of tensor b (0)",
)
"""What torch and anomalib say of pictures, or batches of them, that are too small for a network."""

_LAYERS = {"squeezenet1_1": {1: "features.4", 2: "features.7", 3: "features.12"}}
"""Layers with the strides of a ResNet's layer1 to layer3: 4, 8, 16."""


def _layers(backbone: str, *numbers: int) -> list[str]:
    return [_LAYERS.get(backbone, {}).get(number, f"layer{number}") for number in numbers]


def features(config: schema.Comparator) -> nn.Module:
    """The torchvision network (B, 3, H, W) that features are read from, ImageNet's weights or
    random ones of the global seed.
    """
    network = getattr(torchvision.models, config.backbone)(weights=None)
    if weights.start(config.backbone, config.weights) == "imagenet":
        network.load_state_dict(checkpoint.load_published(config.backbone))
    return network.eval()


def _patchcore(config: schema.PatchCore, size: int, normals: Sequence[Path]) -> AnomalibModule:
    return models.Patchcore(
        features(config),
        _layers(config.backbone, 2, 3),
        coreset_sampling_ratio=config.coreset,
        num_neighbors=config.neighbours,
        pre_processor=False,
        **_BARE,
    )


def _padim(config: schema.PaDiM, size: int, normals: Sequence[Path]) -> AnomalibModule:
    return models.Padim(
        features(config),
        _layers(config.backbone, 1, 2, 3),
        n_features=config.features,
        pre_processor=False,
        **_BARE,
    )


def _cflow(config: schema.Cflow, size: int, normals: Sequence[Path]) -> AnomalibModule:
    return models.Cflow(
        features(config),
        _layers(config.backbone, 2, 3, 4),
        fiber_batch_size=config.fibres,
        condition_vector=config.condition,
        coupling_blocks=config.coupling_blocks,
        lr=config.lr,
        pre_processor=False,
        **_BARE,
    )


def _reverse_distillation(
    config: schema.ReverseDistillation, size: int, normals: Sequence[Path]
) -> AnomalibModule:
    # Its decoder mirrors a backbone that is named, so that the teacher's weights are put in
    # afterwards.
    fixed = PreProcessor(transform=Resize((size, size)))
    module = models.ReverseDistillation(
        config.backbone,
        _layers(config.backbone, 1, 2, 3),
        pre_trained=False,
        pre_processor=fixed,
        **_BARE,
    )
    module.pre_processor = None
    teacher, published = module.model.encoder.feature_extractor, features(config).state_dict()
    teacher.load_state_dict({name: published[name] for name in teacher.state_dict()})
    return module


class _Cfa(models.Cfa):
    def on_train_start(self) -> None:
        """The centroids are of the untrained features: a resumed training keeps them."""
        if self.model.memory_bank.ndim == 0:
            super().on_train_start()


def _cfa(config: schema.Cfa, size: int, normals: Sequence[Path]) -> AnomalibModule:
    def extractor(backbone: str, nodes: list[str]) -> nn.Module:
        return create_feature_extractor(features(config), nodes).eval()

    with mock.patch.object(
        cfa_model, "get_feature_extractor", extractor
    ):  # it knows downloaded weights only
        return _Cfa(config.backbone, pre_processor=False, **_BARE)


class _EfficientAd(models.EfficientAd):
    teacher_file = ""

    def prepare_pretrained_model(self) -> None:
        """The teacher's published weights, where their file is given."""
        if self.teacher_file:
            self.model.teacher.load_state_dict(
                torch.load(self.teacher_file, map_location=self.device, weights_only=True)
            )

    def prepare_imagenette_data(self, image_size: tuple[int, int]) -> None:
        """Pictures of the penalty: black ones without a folder."""
        if self.imagenet_dir.name:
            super().prepare_imagenette_data(image_size)
        else:
            self.imagenet_iterator = itertools.repeat([torch.zeros(1, 3, *image_size)])


def _efficient_ad(config: schema.EfficientAd, size: int, normals: Sequence[Path]) -> AnomalibModule:
    if config.imagenet and not Path(config.imagenet).is_dir():
        raise UserError(
            f"{config.imagenet}: no such folder; put folders of pictures there, or leave "
            f"detect.comparators' imagenet empty"
        )
    if config.teacher and not Path(config.teacher).is_file():
        raise UserError(
            f"{config.teacher}: no such file; put the teacher's weights there, or leave "
            f"detect.comparators' teacher empty"
        )
    module = _EfficientAd(
        Path(config.imagenet), model_size=config.size, pre_processor=False, **_BARE
    )
    module.teacher_file = config.teacher
    return module


def _draem(config: schema.DraemDetector, size: int, normals: Sequence[Path]) -> AnomalibModule:
    if config.textures and not Path(config.textures).is_dir():
        raise UserError(
            f"{config.textures}: no such folder; put pictures there, or leave detect.comparators' "
            f"textures empty"
        )
    with tempfile.TemporaryDirectory() as nothing:  # without a folder it would download one
        module = models.Draem(Path(config.textures or nothing), pre_processor=False, **_BARE)
    if not config.textures:
        module.augmenter.anomaly_source_paths = list(normals)
    return module


def _supersimplenet(
    config: schema.SuperSimpleNet, size: int, normals: Sequence[Path]
) -> AnomalibModule:
    return models.Supersimplenet(
        config.threshold,
        features(config),
        _layers(config.backbone, 2, 3),
        pre_processor=False,
        **_BARE,
    )


_BUILDERS: dict[str, Callable[..., AnomalibModule]] = {
    "patchcore": _patchcore,
    "padim": _padim,
    "cflow": _cflow,
    "reverse_distillation": _reverse_distillation,
    "cfa": _cfa,
    "efficient_ad": _efficient_ad,
    "draem": _draem,
    "supersimplenet": _supersimplenet,
}


def build(
    config: schema.Comparator, size: int, seed: int, normals: Sequence[Path]
) -> AnomalibModule:
    """The detector for pictures of size x size, seeded; normals: files of normal pictures.
    UserError for files that are not there.
    """
    pl.seed_everything(seed % 2**32, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of the network among the hyperparameters, which are dropped
        module = _BUILDERS[config.kind](config, size, normals)
    module.hparams.clear()  # the network, pickled, would be in each checkpoint
    return module


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

    normalised: each channel by ImageNet's mean and deviation instead.
    """

    def __init__(self, images: np.ndarray, batch: int, seed: int, normalised: bool):
        super().__init__()
        self.images, self.train_batch_size, self.seed, self.normalised = (
            images,
            batch,
            seed,
            normalised,
        )

    def batch(self, images: np.ndarray) -> ImageBatch:
        """Pictures (B, H, W, 3) uint8 as a batch of normals."""
        x = torch.from_numpy(np.stack(list(images))).permute(0, 3, 1, 2).contiguous().float() / 255
        if self.normalised:
            x = torchvision.transforms.functional.normalize(x, _MEAN, _STD)
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

    def __init__(self, name: str, seed: int, state: Path, file: Path, every_s: float = 60.0):
        self.name, self.seed, self.state, self.file, self.every_s = name, seed, state, file, every_s
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
        step, epoch = trainer.global_step, trainer.current_epoch + 1
        row = f'{{"step": {step}, "epoch": {epoch}, "loss": {np.mean(self.losses):.6g}}}\n'
        stats = self.state / "stats.jsonl"
        kept = (
            stats.read_text(encoding="utf-8").splitlines(keepends=True)[: trainer.current_epoch]
            if stats.is_file()
            else []
        )
        write_text(stats, "".join(kept) + row)
        if time.monotonic() - self.saved >= self.every_s:
            log.info(
                "%s: epoch %d, loss %.4g",
                self.name,
                trainer.current_epoch + 1,
                np.mean(self.losses),
            )
            write_atomic(self.file, trainer.save_checkpoint)
            self.saved = time.monotonic()


def fit(
    module: AnomalibModule,
    config: schema.Comparator,
    normals: Normals,
    *,
    name: str,
    state: Path,
    key: str,
    device: torch.device,
) -> None:
    """Train on normals, going on from what `state` holds of the same key: the last epoch that was
    saved.

    Raises UserError for a loss that is not finite, and with anomalib's words for pictures that are
    too small for a network.
    """
    state.mkdir(parents=True, exist_ok=True)
    file = state / f"{key}.ckpt"
    journal = _Journal(name, normals.seed, state, file)
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
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    arguments = (
        module.trainer_arguments
        | length
        | place
        | quiet
        | {"num_sanity_val_steps": 0, "callbacks": [journal], "default_root_dir": state}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of workers, loggers and steps that are not wanted here
        trainer = pl.Trainer(**arguments)
        try:
            trainer.fit(module, datamodule=normals, ckpt_path=file if file.is_file() else None)
        except (RuntimeError, ValueError) as error:
            if any(words in str(error) for words in _TOO_SMALL):
                raise UserError(
                    f"{name}: pictures of {normals.images.shape[1]} pixel are too small for it "
                    f"({error})"
                ) from None
            raise


@torch.no_grad()
def predict(
    module: AnomalibModule,
    normals: Normals,
    images: np.ndarray,
    device: torch.device,
    batch: int = 8,
) -> tuple[np.ndarray, np.ndarray]:
    """Anomaly maps (n, H, W) and image scores (n,) of pictures (n, H, W, 3) uint8; higher is more
    anomalous.
    """
    module.to(device).eval()
    if isinstance(module, models.EfficientAd):
        # Its maps are scaled by quantiles over normals; anomalib takes a validation set, this every
        # tenth of the normals.
        loader = [normals.batch(normals.images[::10])]
        module.model.quantiles.update(module.map_norm_quantiles(loader))
    maps, scores = [], []
    for i in range(0, len(images), batch):
        found = module.model(normals.batch(images[i : i + batch]).image.to(device))
        maps.append(found.anomaly_map.float().reshape(-1, *images.shape[1:3]).cpu().numpy())
        scores.append(found.pred_score.float().reshape(-1).cpu().numpy())
    return np.concatenate(maps), np.concatenate(scores)


def describe(
    config: schema.Comparator,
    split: str,
    size: int,
    ground_truth: str,
    pro_limit: float,
    pro_thresholds: int | None,
) -> str:
    """Protocol text, e.g. `PatchCore of anomalib 2.7.0 on squeezenet1_1 (ImageNet weights
    b8a52dc0), half split, 256 px`.
    """
    text = f"{config.label} of anomalib {version('anomalib')}"
    if hasattr(config, "backbone"):
        found = weights.start(config.backbone, config.weights)
        hash_ = Path(weights.FILES[config.backbone]).stem.rpartition("-")[2]
        text += (
            f" on {config.backbone} "
            f"({f'ImageNet weights {hash_}' if found == 'imagenet' else 'random weights'})"
        )
    if hasattr(config, "teacher"):
        text += f" with {'its published' if config.teacher else 'a random'} teacher" + (
            "" if config.imagenet else ", no ImageNet penalty"
        )
    if hasattr(config, "textures"):
        text += (
            f" with textures of "
            f"{Path(config.textures).name if config.textures else 'other normals'}"
        )
    length = next(
        (
            f", {getattr(config, unit)} {unit} x {config.batch}"
            for unit in ("epochs", "steps")
            if hasattr(config, unit)
        ),
        "",
    )
    said = {"batch", "backbone", "weights", "teacher", "imagenet", "textures", "epochs", "steps"}
    text += f"{length}, {trial.split_text(split)}, {size} px"
    truth = trial.truth_text(ground_truth, pro_limit, pro_thresholds)
    return text + truth + trial.settings_text(config, said)


def run(
    key: str,
    dataset: str,
    category: str,
    config: Slice,
    *,
    seed: int,
    prepared: Path,
    state: Path,
    out: Path,
) -> None:
    """Train and test one comparator; write out/{scores.csv,curves.csv,predictions.png,stats.jsonl}
    and, last, out/manifest.json.

    config: `detect.comparators.<key>`, `run.seed` and, of `detect.localization`, `ground_truth`,
    `pro_limit` and `pro_thresholds`. seed: which repetition. state: resume state; a run that was
    killed goes on from its last saved epoch.
    """
    section = config[f"detect.comparators.{key}"]
    rule, split_sha256 = read_split(prepared)
    samples = read_csv(prepared / "samples.csv", Sample)
    tests = HeldOut.read(prepared, samples, config["detect.localization.ground_truth"])
    images = data.normals(prepared, samples)
    device = pick_device()
    own_seed = derive_seed(config["run.seed"], "comparator", key, dataset, category, seed)
    normals = Normals(images, section.batch, own_seed, normalised=hasattr(section, "backbone"))
    who = {"method": key, "dataset": dataset, "category": category, "seed": seed}
    with manifest(
        out / "manifest.json",
        "detect",
        config,
        detector=section.kind,
        **who,
        device=describe_device(device),
    ) as record:
        module = build(
            section,
            images.shape[1],
            own_seed,
            [prepared / s.image for s in samples if s.role == "normal"],
        )
        resume_key = digest(
            [
                section.model_dump(mode="json"),
                own_seed,
                images.shape,
                _pixels(images),
                version("anomalib"),
            ]
        )
        begun = time.monotonic()
        fit(
            module,
            section,
            normals,
            name=f"{section.label} {dataset}/{category}",
            state=state,
            key=resume_key,
            device=device,
        )
        record["training"] = {
            "steps": int(module.trainer.global_step),
            "seconds": round(time.monotonic() - begun, 1),
        }
        maps, scores = predict(module, normals, tests.images, device)
        keys = ("ground_truth", "pro_limit", "pro_thresholds")
        reading = {key: config[f"detect.localization.{key}"] for key in keys}
        pro = {key: value for key, value in reading.items() if key != "ground_truth"}
        found = tests.measure(maps, scores, **pro)
        protocol = describe(section, rule, images.shape[1], **reading)
        facts = {
            **who,
            "split": rule,
            "split_sha256": split_sha256,
            "protocol": protocol,
            "config_digest": config.digest,
        }
        write_csv(out / "scores.csv", trial.score_rows(found, **facts), Score)
        tests.write(out, maps, scores, display=(float(maps.min()), float(maps.max())))
        write_text(out / "stats.jsonl", (state / "stats.jsonl").read_text(encoding="utf-8"))
        record["pictures"] = {"normals": len(images), "test": len(tests.samples)}
        record["split"] = {"rule": rule, "sha256": split_sha256}
    texts = "  ".join(f"{metric} {value:.1f}" for metric, value in found[ALL][1].items())
    log.info("%s %s/%s: %s", section.label, dataset, category, texts)
    shutil.rmtree(state)


def _pixels(images: np.ndarray) -> str:
    """Digest of all pixels: a resume state belongs to the pictures it was trained on."""
    return hashlib.sha256(images.tobytes()).hexdigest()
