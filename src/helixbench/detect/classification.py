"""Which defect type is it: a classifier trained on generated pairs of one category, tested on
held-out real defects.

The protocol of AnomalyDiffusion: cross-entropy over the defect types, RGB in [0, 1] at the working
size without normalisation or augmentation, steps in proportion to the defect types, as its epochs
are.
"""

from __future__ import annotations

import hashlib
import logging

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from helixbench import weights
from helixbench.config import Slice
from helixbench.detect.detector import Job, Metrics, PairDetector
from helixbench.engine import checkpoint, lite0
from helixbench.errors import UserError
from helixbench.pictures.prepared import sample_images
from helixbench.protocol import Protocol
from helixbench.records import ALL, GOOD
from helixbench.schema.section import Optim

log = logging.getLogger(__name__)


def network_of(backbone: str, types: int, normalise: bool, imagenet: bool = False) -> nn.Module:
    """A torchvision ResNet or EfficientNet-Lite0 with a new last layer: (B, 3, H, W) in [0, 1] ->
    logits (B, types).

    imagenet: whether all other layers have their published weights.
    """
    if backbone == weights.LITE0:
        network = lite0.network() if imagenet else lite0.architecture()
        network.classifier = nn.Linear(network.classifier.in_features, types)
    else:
        network = getattr(torchvision.models, backbone)(weights=None)
        if imagenet:
            network.load_state_dict(checkpoint.load_published(backbone))
        network.fc = nn.Linear(network.fc.in_features, types)
    trained = weights.normalisation(backbone)
    first = torchvision.transforms.Normalize(*trained) if normalise else nn.Identity()
    return nn.Sequential(first, network).to(memory_format=torch.channels_last)


class Classification(PairDetector):
    """The classifier; its predictions are indices of `defects`, (n,) int64.

    config: keys `detect.classification` and `run.seed`. The classes are the types of the pairs and
    of the test pictures: a type that no usable pair shows is never answered, and its pictures count
    as wrong. Raises UserError when there is no test picture, or no usable pair at all.
    """

    kind = "classification"
    chosen_by = ("accuracy",)

    def __init__(self, job: Job, config: Slice):
        section = config["detect.classification"]
        if section is None:
            raise UserError("detect.classification is not used; name it in detect.use")
        super().__init__(job, config, section, "classification")
        tests = [s for s in self.samples if s.tests and s.defect != GOOD]
        if not tests:
            raise UserError(
                f"{job.prepared / 'samples.csv'}: no defective picture has role test; accuracy "
                f"needs some"
            )
        self.tests = sample_images(job.prepared, tests)
        pairs = self.read_pairs(self.tests.shape[1:3])
        if not pairs:
            raise UserError(
                f"{job.pairs}: no pair passed the mask gate, so there is nothing to learn the "
                f"defect types from; generate again"
            )
        self.defects = sorted({*pairs, *(sample.defect for sample in tests)})
        self.truth = np.array([self.defects.index(sample.defect) for sample in tests])
        self.images = np.concatenate([images for images, _ in pairs.values()])
        counts = [len(images) for images, _ in pairs.values()]
        self.labels = np.repeat([self.defects.index(defect) for defect in pairs], counts)
        self.types_trained = len(pairs)
        self.backbone, self.start = weights.start(section.network, section.weights)
        self.size, self.pictures = self.tests.shape[1], {"test": len(tests)}

    @property
    def optim(self) -> Optim:
        """Of all defect types together."""
        optim = self.section.optim
        return optim.model_copy(update={"steps": optim.steps * self.types_trained})

    def build(self) -> nn.Module:
        """Network (B, 3, H, W) in [0, 1] -> logits (B, types); its last layer is new and
        seeded.
        """
        section = self.section
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return network_of(
                self.backbone, len(self.defects), section.normalise, self.start == "imagenet"
            )

    def keep(self) -> None:
        """out/network.safetensors."""
        network = {"network": self.backbone, "normalise": self.section.normalise}
        self.keep_network(**network, defects=self.defects)

    def loss(self, step: int, rng: torch.Generator) -> torch.Tensor:
        """Cross-entropy of a batch drawn uniformly from all pairs."""
        batch = self.section.optim.per_pass
        chosen = torch.randint(len(self.images), (batch,), generator=rng).numpy()
        logits = self.network(self._planes(self.images[chosen]))
        return F.cross_entropy(
            logits.float(), torch.from_numpy(self.labels[chosen]).to(self.device)
        )

    def data_digest(self) -> str:
        """sha256 of pixels, labels and the start of the network."""
        begin = f"{self.backbone} {self.start}".encode()
        return hashlib.sha256(self.images.tobytes() + self.labels.tobytes() + begin).hexdigest()

    @torch.no_grad()
    def predict(self) -> np.ndarray:
        """Class of each test picture, in evaluation mode and full precision."""
        network, batch = self.network, self.section.optim.batch
        training = network.training
        network.eval()
        with torch.autocast(self.device.type, enabled=False):
            answers = [
                network(self._planes(self.tests[i : i + batch])).argmax(1).cpu()
                for i in range(0, len(self.tests), batch)
            ]
        network.train(training)
        return torch.cat(answers).numpy()

    def measure(self, predictions: np.ndarray) -> Metrics:
        """Share of right answers in percent; nothing where there is one type, and no other answer
        than the right one.
        """
        if len(self.defects) == 1:
            log.info("%s: one defect type, %s; no accuracy", self.title, self.defects[0])
            return {}
        right, metrics = predictions == self.truth, {}
        for i, defect in [*enumerate(self.defects), (None, ALL)]:
            of_type = right if defect == ALL else right[self.truth == i]
            if len(of_type):
                metrics[defect] = len(of_type), {"accuracy": 100 * float(of_type.mean())}
        return metrics

    def protocol(self, checkpoint_name: str) -> Protocol:
        """With the facts of the network; the steps are those of each defect type."""
        facts = super().protocol(checkpoint_name)
        own = {"network": self.backbone, "weights": self.start}
        return facts.having(**own, steps_per_defect=facts.get("steps")).without("steps")

    def _planes(self, images: np.ndarray) -> torch.Tensor:
        planes = torch.from_numpy(images).permute(0, 3, 1, 2).to(self.device).float() / 255
        return planes.contiguous(memory_format=torch.channels_last)
