"""Which pixels are defective: segmenters trained on generated pairs, judged by IoU and accuracy on
held-out real defects.

STAGE and FAST print mIoU and accuracy, SeaS the IoU of the anomaly alone: each is a metric of its
own here. All come from one confusion matrix over all pixels of the defective test pictures, with
the two classes normal and anomalous.
"""

from __future__ import annotations

import numpy as np
import segmentation_models_pytorch as smp
import torch
from torch import nn

from helixbench.config import Slice
from helixbench.detect import localization
from helixbench.detect.detector import Job, Metrics
from helixbench.errors import UserError
from helixbench.metrics import confusion_metrics
from helixbench.protocol import Protocol
from helixbench.records import ALL, GOOD

_BUILDERS = {"segformer": smp.Segformer, "unet": smp.Unet, "deeplabv3plus": smp.DeepLabV3Plus}


class Segmentation(localization.PixelDetector):
    """A segmenter; its predictions are masks of the defective test pictures, (n, H, W) uint8 in
    {0, 1}.

    config: keys `detect.segmentation` and `run.seed`; architecture: a key of its `networks`.
    """

    kind = "segmentation"
    chosen_by = ("miou",)

    def __init__(self, job: Job, config: Slice, architecture: str):
        section = config["detect.segmentation"]
        if section is None or architecture not in section.networks:
            raise UserError(
                f"detect.segmentation.networks: {architecture} is not there; give its encoder, as "
                f"params.yaml does"
            )
        super().__init__(job, config, section, "segmentation", architecture)
        self.name = f"segmentation by {architecture}"
        self.architecture, self.encoder = architecture, section.networks[architecture]
        defective = self.tests.defects != GOOD
        self.defects = self.tests.defects[defective]
        self.images, self.masks = self.tests.images[defective], self.tests.masks[defective]
        self.pictures["test"] = len(self.images)

    def build(self) -> nn.Module:
        """Segmenter (B, 3, H, W) -> logits (B, 2, H, W), without pretrained weights; H and W
        multiples of 32.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = _BUILDERS[self.architecture](
                encoder_name=self.encoder, encoder_weights=None, in_channels=3, classes=2
            )
        return network.to(memory_format=torch.channels_last)

    def predict(self) -> np.ndarray:
        """Masks of the defective test pictures. Raises UserError for outputs that are not
        finite.
        """
        batch = self.section.optim.batch
        maps = localization.anomaly_maps(self.network, self.images, self.device, batch)
        if not np.isfinite(maps).all():
            raise UserError(
                "segmentation: the trained network's outputs are not finite; lower optim.lr"
            )
        return (maps > 0.5).astype(np.uint8)

    def measure(self, predictions: np.ndarray) -> Metrics:
        """IoU and accuracy in percent."""
        metrics = {}
        for defect in (*sorted(set(self.defects)), ALL):
            chosen = (self.defects == defect) | (defect == ALL)
            try:
                values = confusion_metrics(predictions[chosen] > 0, self.masks[chosen])
            except ValueError as error:
                raise UserError(
                    f"test pictures of {defect}: the metrics are not defined, {error}"
                ) from None
            percent = {name: 100 * value for name, value in values.items()}
            metrics[defect] = int(chosen.sum()), percent
        return metrics

    def protocol(self, checkpoint_name: str) -> Protocol:
        """With the facts of the network and of the test pictures."""
        facts = super().protocol(checkpoint_name).without("networks")
        network = {"network": self.architecture, "encoder": self.encoder, "weights": "none"}
        return facts.having(**network, defective_only=True)
