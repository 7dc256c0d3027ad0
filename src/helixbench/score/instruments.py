"""The networks and normal pictures that metrics measure with, loaded once per category."""

from __future__ import annotations

import numpy as np

from helixbench.engine.devices import pick_device
from helixbench.schema import ScoreSection
from helixbench.score.alignment import MaskAgreement
from helixbench.score.ic_lpips import PairwiseLpips, build_lpips
from helixbench.score.inception import InceptionScorer
from helixbench.weights import LPIPS_ORDER, choose


class Instruments:
    """normals (n, H, W, 3) uint8: the normal training pictures, possibly none.

    Attributes: `inception`, the network of IS and KID; `lpips_network`, the name of the configured
    backbone; `agreement`, None without normals. Raises UserError for missing weights.
    """

    def __init__(self, config: ScoreSection, normals: np.ndarray):
        self.config = config
        self.device = pick_device()
        self.inception = InceptionScorer(config.inception_score.network, self.device, config.batch)
        self.lpips_network = choose(config.ic_lpips.network, LPIPS_ORDER)
        self.agreement = (
            MaskAgreement(normals, self.device, **config.mask_agreement.model_dump())
            if len(normals)
            else None
        )
        self._lpips: dict[str, PairwiseLpips] = {}

    def lpips(self, network: str) -> PairwiseLpips:
        """LPIPS distances by a backbone, built on first use."""
        if network not in self._lpips:
            self._lpips[network] = PairwiseLpips(
                build_lpips(network), self.device, self.config.batch, self.config.memory_gib
            )
        return self._lpips[network]
