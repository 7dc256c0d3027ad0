"""Intra-cluster LPIPS (Ojha et al., CVPR 2021), the protocol of AnomalyDiffusion and DualAnoDiff.

Each generated image joins its nearest real anchor; the score is the mean over clusters of the mean LPIPS (Zhang et
al., CVPR 2018) over all pairs of at most `cap` members. Differences to the public scripts: the shuffle is seeded and
repeated, and empty clusters are counted rather than silently dropped.

LPIPS is sum_l mean_p sum_c w_lc (f_lpc - g_lpc)^2 over layers l, positions p and channels c of unit-normalised
features, with w >= 0. It is therefore the squared Euclidean distance of one vector an image, sqrt(w_lc / P_l) f_lpc,
and all distances of a cluster come from one matrix product.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import dataclass

import lpips
import numpy as np
import torch
from torch import nn

from helixbench.records import derive_seed
from helixbench.score import networks

MEMORY = 2 << 30
"""Bytes that embeddings may take at one time."""


def build_lpips(network: str) -> lpips.LPIPS:
    """The lpips package's own module with ImageNet weights from the hub cache, or a fixed-seed random SqueezeNet trunk.

    Its trunk is always built without weights and filled here: that way nothing is downloaded.
    """
    seed = torch.random.get_rng_state()
    torch.manual_seed(networks.RANDOM_SEED)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # torchvision: `pretrained` is deprecated
            module = lpips.LPIPS(net="squeeze" if network == "random" else network, pnet_rand=True, verbose=False)
    finally:
        torch.random.set_rng_state(seed)
    if network != "random":
        state = networks.load_weights(network)
        trunk = {name: state["features." + name.split(".", 1)[1]] for name in module.net.state_dict()}
        module.net.load_state_dict(trunk)
    return module.eval().requires_grad_(False)


class Embedding(nn.Module):
    """(B, H, W, 3) uint8 -> (B, D) float32 whose squared Euclidean distances are LPIPS distances."""

    def __init__(self, module: lpips.LPIPS):
        super().__init__()
        self.module = module
        weights = [lin.model[-1].weight.flatten() for lin in module.lins]
        if any((w < 0).any() for w in weights):
            raise ValueError("LPIPS weights are negative: the distance is not Euclidean")
        self.roots = nn.ParameterList([nn.Parameter(w.sqrt(), requires_grad=False) for w in weights])

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embed a batch."""
        x = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        parts = []
        for features, root in zip(self.module.net(self.module.scaling_layer(x)), self.roots, strict=True):
            positions = features.shape[2] * features.shape[3]
            unit = lpips.normalize_tensor(features)
            parts.append((unit * (root / positions**0.5).view(1, -1, 1, 1)).flatten(1))
        return torch.cat(parts, 1)


def squared_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(n, D), (m, D) -> (n, m), by |a|^2 + |b|^2 - 2ab, about a common origin so that little cancels."""
    origin = a.mean(0)
    a, b = a - origin, b - origin
    return ((a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T).clamp_(min=0)


class PairwiseLpips:
    """LPIPS distances between pictures by matrix products, within a memory limit.

    Pictures are embedded once while all embeddings of a question fit into `memory` bytes; beyond that in blocks.
    """

    def __init__(self, module: lpips.LPIPS, device: torch.device, batch: int = 32, memory: int = MEMORY):
        self.embedding = Embedding(module).to(device)
        self.device, self.batch, self.memory = device, batch, memory

    def embed(self, images: np.ndarray) -> torch.Tensor:
        """(n, H, W, 3) uint8 -> (n, D) float32 on the device."""
        chunks = [images[i : i + self.batch] for i in range(0, len(images), self.batch)]
        return torch.cat([self.embedding(torch.from_numpy(chunk).to(self.device)) for chunk in chunks])

    def block(self, images: np.ndarray) -> int:
        """Pictures a block, such that two blocks (and their centred copies) stay within the memory limit."""
        size = self.embed(images[:1]).shape[1] * 4
        return max(1, self.memory // (4 * size))

    def distances(self, first: np.ndarray, second: np.ndarray | None = None) -> np.ndarray:
        """Matrix of distances between two stacks of pictures, or within one: (n, m) float64."""
        rows = len(first)
        columns = rows if second is None else len(second)
        out = np.zeros((rows, columns))
        if not out.size:
            return out
        block = self.block(first)
        for i in range(0, rows, block):
            a = self.embed(first[i : i + block])
            for j in range(0 if second is not None else i, columns, block):
                same = second is None and i == j
                b = a if same else self.embed((first if second is None else second)[j : j + block])
                part = squared_distances(a, b).double().cpu().numpy()
                out[i : i + len(a), j : j + len(b)] = part
                if second is None:
                    out[j : j + len(b), i : i + len(a)] = part.T
        if second is None:
            np.fill_diagonal(out, 0)
        return out


@dataclass(frozen=True)
class IcLpipsResult:
    """One score a shuffle; clusters with fewer than two images are left out of the mean and counted."""

    scores: tuple[float, ...]
    empty_clusters: int
    clusters: int


def cluster_means(images: np.ndarray, assigned: np.ndarray, pairwise: PairwiseLpips, cap: int, shuffles: int, seed: int) -> np.ndarray:
    """Mean pairwise distance of each cluster in each shuffle, (shuffles, clusters with at least two images)."""
    columns = []
    for cluster in np.unique(assigned):
        members = np.flatnonzero(assigned == cluster)
        if len(members) < 2:
            continue
        draws = [np.random.default_rng(derive_seed(seed, "ic-lpips", int(cluster), s)).permutation(members)[:cap] for s in range(shuffles)]
        union = np.unique(np.concatenate(draws))
        matrix = pairwise.distances(images[union])
        rows = [np.searchsorted(union, draw) for draw in draws]
        columns.append([matrix[np.ix_(r, r)][np.triu_indices(len(r), 1)].mean() for r in rows])
    return np.asarray(columns).reshape(-1, shuffles).T


def ic_lpips(
    images: np.ndarray, anchors: np.ndarray, pairwise: PairwiseLpips, *, cap: int = 50, shuffles: int = 5, seed: int = 0
) -> IcLpipsResult:
    """IC-LPIPS of generated images against real anchors, both (n, H, W, 3) uint8 of one size.

    cap: images kept per cluster; seed, shuffles: which are kept. Ties between anchors go to the later one, as in the
    public scripts. A score without any cluster of two images is 0: images that never share a neighbour show no
    diversity that the measure could see.
    """
    nearest = pairwise.distances(anchors, images).T  # anchors are few: one block, against which the images stream
    assigned = nearest.shape[1] - 1 - nearest[:, ::-1].argmin(1)
    means = cluster_means(images, assigned, pairwise, cap, shuffles, seed)
    empty = len(anchors) - means.shape[1]
    scores = means.mean(1) if means.size else np.zeros(shuffles)
    return IcLpipsResult(tuple(map(float, scores)), empty, len(anchors))
