"""Intra-cluster LPIPS (Ojha et al., CVPR 2021), the protocol of AnomalyDiffusion and DualAnoDiff.

Each generated image joins its nearest real anchor; the score is the mean over clusters of the mean
LPIPS (Zhang et al., CVPR 2018) over all pairs of at most `cap` members. Differences to the public
scripts: the shuffle is seeded and repeated, and empty clusters are counted rather than silently
dropped.

LPIPS is sum_l mean_p sum_c w_lc (f_lpc - g_lpc)^2 over layers l, positions p and channels c of
unit-normalised features, with w >= 0. It is therefore the squared Euclidean distance of one vector
an image, sqrt(w_lc / P_l) f_lpc, and all distances of a cluster come from one matrix product.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import lpips
import numpy as np
import torch
from PIL import Image
from torch import nn

from helixbench.engine import lite0
from helixbench.engine.checkpoint import load_published
from helixbench.records import derive_seed
from helixbench.score import networks
from helixbench.weights import LITE0

log = logging.getLogger(__name__)

MEMORY_GIB = 4.0
"""GiB that embeddings may take at one time."""

TIE = 1e-6
"""Anchors whose distances differ by less are equally near: float32 products do not tell them
apart."""

COLUMNS = 1 << 13
"""Columns of the embeddings that one matrix product sees: their single-precision copies stay in a
processor's cache."""

ROWS = 64
"""Embeddings whose distances to others are taken together, for the same reason."""

SCALE = 1024.0
"""Embeddings are kept times this in half precision, far from its smallest numbers: half the memory,
1e-6 of a distance."""

HALF_WITHIN = 1e-3
"""Largest change of a distance for which a GPU's network runs in half precision."""

CPU_BATCH = 2
"""Pictures that go through the network together on a CPU: more of them fall out of its cache (44
against 19 ms a picture)."""


class Lite0Distance(nn.Module):
    """A distance like LPIPS on EfficientNet-Lite0: the mean over its stem, stages and head, all
    channels weighted alike; built as the lpips package builds its own
    (benchmarks/perceptual.py: how far it ranks pairs as LPIPS does).
    """

    def __init__(self):
        super().__init__()
        self.trunk = lite0.network()
        self.scaling_layer = nn.Identity()  # pictures in [-1, 1] are what the network takes
        with torch.no_grad():
            widths = [x.shape[1] for x in self.net(torch.zeros(1, 3, 32, 32))]
        self.lins = nn.ModuleList(lpips.NetLinLayer(width) for width in widths)
        for lin in self.lins:
            nn.init.constant_(lin.model[-1].weight, 1 / len(widths))

    def net(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Pictures (B, 3, H, W) in [-1, 1] -> features of each layer (B, C, h, w)."""
        layers = [self.trunk.bn1(self.trunk.conv_stem(x))]
        for stage in self.trunk.blocks:
            layers.append(stage(layers[-1]))
        return [*layers, self.trunk.bn2(self.trunk.conv_head(layers[-1]))]


def build_lpips(network: str) -> lpips.LPIPS | Lite0Distance:
    """The lpips package's own module with ImageNet weights from the hub cache, a fixed-seed random
    SqueezeNet trunk, or the distance on EfficientNet-Lite0.

    Its trunk is always built without weights and filled here: that way nothing is downloaded.
    """
    if network == LITE0:
        return Lite0Distance().eval().requires_grad_(False)
    seed = torch.random.get_rng_state()
    torch.manual_seed(networks.RANDOM_SEED)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # torchvision: `pretrained` is deprecated
            module = lpips.LPIPS(
                net="squeeze" if network == "random" else network, pnet_rand=True, verbose=False
            )
    finally:
        torch.random.set_rng_state(seed)
    if network != "random":
        state = load_published(network)
        trunk = {
            name: state["features." + name.split(".", 1)[1]] for name in module.net.state_dict()
        }
        module.net.load_state_dict(trunk)
    return module.eval().requires_grad_(False)


class Embedding(nn.Module):
    """(B, H, W, 3) uint8 -> (B, D) float16, SCALE times the vectors whose squared Euclidean
    distances are LPIPS distances.
    """

    def __init__(self, module: lpips.LPIPS | Lite0Distance):
        super().__init__()
        # a copy: with weights as the pictures lie, channels last, a CPU needs half the time (no
        # reordering in each layer)
        self.module = deepcopy(module).to(memory_format=torch.channels_last)
        weights = [lin.model[-1].weight.flatten() for lin in module.lins]
        if any((w < 0).any() for w in weights):
            raise ValueError("LPIPS weights are negative: the distance is not Euclidean")
        self.roots = nn.ParameterList(
            [nn.Parameter(w.sqrt(), requires_grad=False) for w in weights]
        )
        self.half = False
        """Whether the network runs in half precision; norms and weights never do."""

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embed a batch."""
        x = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.autocast(x.device.type, torch.float16, enabled=self.half):
            layers = self.module.net(self.module.scaling_layer(x))
        out = torch.empty(
            len(x), sum(layer[0].numel() for layer in layers), dtype=torch.float16, device=x.device
        )
        start = 0
        for features, root in zip(layers, self.roots, strict=True):
            # channels last: pictures come so, and a CPU keeps it
            features = features.float().permute(0, 2, 3, 1)
            # as lpips.normalize_tensor
            norm = torch.linalg.vector_norm(features, dim=3, keepdim=True) + 1e-10
            positions = features.shape[1] * features.shape[2]
            features.mul_(root).mul_(SCALE / positions**0.5 / norm)
            stop = start + features[0].numel()
            out[:, start:stop] = features.flatten(1)
            start = stop
        return out


def squared_distances(
    a: torch.Tensor, b: torch.Tensor | None = None, rows: np.ndarray | None = None
) -> np.ndarray:
    """Embeddings (n, D), (m, D) -> (n, m) float64 by |a|^2 + |b|^2 - 2ab; without b within a, or
    within those `rows` of it.

    Summed over columns in float64.
    """
    if b is not None and len(a) > ROWS:
        return np.concatenate(
            [squared_distances(a[i : i + ROWS], b) for i in range(0, len(a), ROWS)]
        )
    n = len(a) if rows is None else len(rows)
    m = n if b is None else len(b)
    products = a.new_zeros(n, m, dtype=torch.float64)
    own = a.new_zeros(n, dtype=torch.float64)  # squared norms of a, then of b
    other = a.new_zeros(m, dtype=torch.float64)
    for j in range(0, a.shape[1], COLUMNS):
        x = (a[:, j : j + COLUMNS] if rows is None else a[rows, j : j + COLUMNS]).float()
        y = x if b is None else b[:, j : j + COLUMNS].float()
        products += (x @ y.T).double()
        if b is not None:
            own += _squared_norms(x)
            other += _squared_norms(y)
    if b is None:
        own = other = products.diagonal()
    total = (own[:, None] + other[None] - 2 * products).clamp_(min=0).cpu().numpy() / SCALE**2
    if b is None:
        np.fill_diagonal(total, 0)
    return total


def _squared_norms(rows: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(rows, dim=1).double().square()


class PairwiseLpips:
    """LPIPS distances between pictures by matrix products, within a memory limit.

    While all embeddings of a question fit into `memory_gib`, each picture is embedded once; beyond
    that a block of rows is held and the columns stream past it. half: whether the network may run
    in half precision, if that is precise enough; by default on a GPU.
    """

    def __init__(
        self,
        module: lpips.LPIPS,
        device: torch.device,
        batch: int = 32,
        memory_gib: float = MEMORY_GIB,
        half: bool | None = None,
    ):
        self.embedding = Embedding(module).to(device)
        self.device, self.batch, self.memory_gib = device, batch, memory_gib
        self._sizes: dict[tuple[int, ...], int] = {}
        self._may_be_half = device.type == "cuda" if half is None else half

    def _settle(self, images: np.ndarray) -> None:
        """Half precision from now on, if it changes no distance among some of these pictures and
        their mirror images too much.
        """
        self._may_be_half = False
        sample = images[:8]
        sample = torch.from_numpy(np.concatenate([sample, sample[:, :, ::-1]])).to(self.device)
        single = squared_distances(self.embedding(sample))
        self.embedding.half = True
        change = np.abs(squared_distances(self.embedding(sample)) - single).max()
        self.embedding.half = bool(change <= HALF_WITHIN)  # False for one that is no number
        if not self.embedding.half:
            log.info("LPIPS stays in single precision: half changes a distance by %.2g", change)

    def embed(self, images: np.ndarray) -> torch.Tensor:
        """(n, H, W, 3) uint8 -> (n, D) float16 on the device."""
        if self._may_be_half and len(images):
            self._settle(images)
        out = None
        step = self.batch if self.device.type == "cuda" else min(self.batch, CPU_BATCH)
        for i in range(0, len(images), step):
            part = self.embedding(torch.from_numpy(images[i : i + step]).to(self.device))
            if out is None:
                out = part.new_empty(len(images), part.shape[1])
            out[i : i + len(part)] = part
        return out

    def capacity(self, images: np.ndarray) -> int:
        """Pictures of this size whose embeddings the memory limit holds beside one batch, at least
        one.
        """
        shape = images.shape[1:]
        if self._may_be_half:
            self._settle(images)
        if shape not in self._sizes:
            self._sizes[shape] = self.embed(images[:1]).shape[1] * 2
        return max(1, int(self.memory_gib * 2**30) // self._sizes[shape] - self.batch)

    def distances(self, first: np.ndarray, second: np.ndarray | None = None) -> np.ndarray:
        """Matrix of distances between two stacks of pictures, or within one: (n, m) float64."""
        within, second = second is None, first if second is None else second
        out = np.zeros((len(first), len(second)))
        if not out.size:
            return out
        block = self.capacity(first)
        for i in range(0, len(first), block):
            held = self.embed(first[i : i + block])
            stop = i + len(held)
            if within:
                out[i:stop, i:stop] = squared_distances(held)
            for j in range(stop if within else 0, len(second), self.batch):
                part = squared_distances(held, self.embed(second[j : j + self.batch]))
                out[i:stop, j : j + part.shape[1]] = part
                if within:
                    out[j : j + part.shape[1], i:stop] = part.T
        return out


@dataclass(frozen=True)
class IcLpipsResult:
    """One score a shuffle; clusters without a pair (no image, or a single one) are left out of the
    mean and counted.
    """

    scores: tuple[float, ...]
    empty_clusters: int
    single_clusters: int
    clusters: int

    @property
    def with_zeros(self) -> tuple[float, ...]:
        """The scores, had clusters without a pair counted 0, as in DFMGAN's script."""
        share = 1 - (self.empty_clusters + self.single_clusters) / max(self.clusters, 1)
        return tuple(score * share for score in self.scores)


def cluster_means(
    assigned: np.ndarray,
    within: Callable[[np.ndarray], np.ndarray],
    cap: int,
    shuffles: int,
    seed: int,
) -> np.ndarray:
    """Mean pairwise distance of each cluster in each shuffle, (shuffles, clusters with at least two
    images).

    within: indices of images (k,) -> their distances (k, k).
    """
    columns = []
    for cluster in np.unique(assigned):
        members = np.flatnonzero(assigned == cluster)
        if len(members) < 2:
            continue
        draws = [
            np.random.default_rng(derive_seed(seed, "ic-lpips", int(cluster), s)).permutation(
                members
            )[:cap]
            for s in range(shuffles)
        ]
        union = np.unique(np.concatenate(draws))
        matrix = within(union)
        rows = [np.searchsorted(union, draw) for draw in draws]
        columns.append([matrix[np.ix_(r, r)][np.triu_indices(len(r), 1)].mean() for r in rows])
    return np.asarray(columns).reshape(-1, shuffles).T


def ic_lpips(
    images: np.ndarray,
    anchors: np.ndarray,
    pairwise: PairwiseLpips,
    *,
    cap: int = 50,
    shuffles: int = 5,
    seed: int = 0,
) -> IcLpipsResult:
    """IC-LPIPS of generated images against real anchors, both (n, H, W, 3) uint8 of one size.

    cap: images kept per cluster; seed, shuffles: which are kept. Ties between anchors go to the
    later one, as in the public scripts. A score without any cluster of two images is 0: images that
    never share a neighbour show no diversity that the measure could see.
    """
    if not len(images) or not len(anchors):
        return IcLpipsResult((0.0,) * shuffles, len(anchors), 0, len(anchors))
    if len(images) + len(anchors) <= pairwise.capacity(images):
        held = pairwise.embed(images)
        nearest = squared_distances(held, pairwise.embed(anchors))

        def within(rows: np.ndarray) -> np.ndarray:
            return squared_distances(held, rows=rows)

    else:
        nearest = pairwise.distances(anchors, images).T

        def within(rows: np.ndarray) -> np.ndarray:
            return pairwise.distances(images[rows])

    tied = nearest <= nearest.min(1, keepdims=True) + TIE
    assigned = nearest.shape[1] - 1 - tied[:, ::-1].argmax(1)
    means = cluster_means(assigned, within, cap, shuffles, seed)
    sizes = np.bincount(assigned, minlength=len(anchors))
    scores = means.mean(1) if means.size else np.zeros(shuffles)
    return IcLpipsResult(
        tuple(map(float, scores)), int((sizes == 0).sum()), int((sizes == 1).sum()), len(anchors)
    )


def defect_crops(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """What the masks mark: (n, H, W, 3) uint8 and (n, H, W) bool -> crops (m, H, W, 3), those with
    an empty mask left out.

    The smallest square about a mask's bounding box, at least an eighth of the picture and moved
    into it, is enlarged to the whole size.
    """
    height, width = images.shape[1:3]
    crops = []
    for image, mask in zip(images, masks, strict=True):
        if not mask.any():
            continue
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        side = max(np.ptp(rows) + 1, np.ptp(columns) + 1, min(height, width) // 8)
        side = min(side, height, width)
        top, left = (
            min(max(0, (at[0] + at[-1] + 1 - side) // 2), end - side)
            for at, end in ((rows, height), (columns, width))
        )
        crop = Image.fromarray(image).crop((left, top, left + side, top + side))
        crops.append(np.asarray(crop.resize((width, height), Image.Resampling.BICUBIC)))
    return np.stack(crops) if crops else images[:0]
