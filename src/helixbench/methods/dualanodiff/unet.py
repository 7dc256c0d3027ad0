"""DualAnoDiff's U-Net (arXiv 2408.13509): two branches over one diffusers U-Net, tied together
after every attention.

The branches, whole picture and defective part, are folded on the batch axis, whole first: (2B, N,
C).
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import functional as F

from helixbench.methods.dualanodiff.config import DualAnoDiff
from helixbench.methods.latent_learner import adapters, add_low_rank, transformer_blocks

BRANCHES = ("whole", "part")


class SelfAttentionInteraction(nn.Module):
    """SAIM: attention between the two branches at one spatial position, added to both.

    LayerNorm (eps 1e-6), then five linear layers: input, query, key, value, output of single-head
    attention over the pair. The output layer starts at zero, so that an untrained model is the
    plain U-Net. Source: DualAnoDiff's code, where that layer starts at random.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        layers = (nn.Linear(width, width) for _ in range(5))
        self.enter, self.to_q, self.to_k, self.to_v, self.to_out = layers
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X (2B, N, C) -> (2B, N, C)."""
        pair = torch.stack(self.enter(self.norm(x)).chunk(2), dim=2)  # (B, N, 2, C)
        out = F.scaled_dot_product_attention(self.to_q(pair), self.to_k(pair), self.to_v(pair))
        return x + torch.cat(self.to_out(out).unbind(2))


class BackgroundCompensation(nn.Module):
    """BCM: keys and values of the whole-picture branch become (1 - a) h + a MLP(h of the
    background), a = 0 at the start.
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.Linear(hidden, width))
        self.a = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, background: torch.Tensor) -> torch.Tensor:
        """X (2B, N, C), background (B, N, C) -> (2B, N, C); the part's half is left alone."""
        whole, part = x.chunk(2)
        return torch.cat([(1 - self.a) * whole + self.a * self.mlp(background), part])


class DualAnoDiffUNet(nn.Module):
    """Predicts the noise of both branches; `unet` is a diffusers model with one set of low-rank
    adapters a branch.
    """

    def __init__(self, unet: UNet2DConditionModel, config: DualAnoDiff):
        super().__init__()
        self.unet, self.config = unet, config
        for branch in BRANCHES:
            add_low_rank(unet, branch, config.rank, ["to_q", "to_k", "to_v", "to_out.0"])
        self.interaction, self.compensation = nn.ModuleDict(), nn.ModuleDict()
        for name, block in transformer_blocks(unet):
            for attention in ("attn1", "attn2"):
                key, layer = f"{name}_{attention}", getattr(block, attention)
                width = layer.to_q.in_features
                self.interaction[key] = SelfAttentionInteraction(width)
                if config.background and attention == "attn1":
                    self.compensation[key] = BackgroundCompensation(width, config.background_width)
                layer.set_processor(_Attention(self, key))
        self.branches = BRANCHES  # those on the batch axis in this pass
        self.writing = False
        self.features: dict[str, torch.Tensor] = {}

    def forward(
        self,
        z: tuple[torch.Tensor, torch.Tensor],
        t: torch.Tensor,
        text: tuple[torch.Tensor, torch.Tensor],
        background: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise predictions of whole and part.

        Args:
            z: noisy latents of both branches, each (B, C, h, w).
            t: timesteps (B,), shared by the branches.
            text: text embeddings of both branches, each (B, L, D).
            background: noised latents of the background (B, C, h, w), not multiplied by the
                autoencoder's scaling factor; read only with `config.background`.
        """
        self.features = {}
        if background is not None and self.compensation:
            # The same U-Net with the whole picture's adapters; only what enters its self-attention
            # is kept.
            self.branches, self.writing = BRANCHES[:1], True
            self.unet(background, t, text[0])
        self.branches, self.writing = BRANCHES, False
        return self.unet(torch.cat(z), torch.cat([t, t]), torch.cat(text)).sample.chunk(2)

    def trainable_(self) -> DualAnoDiffUNet:
        """Set requires_grad: adapters and new modules, and by `config.trainable` all of the
        U-Net.
        """
        for name, parameter in self.unet.named_parameters():
            parameter.requires_grad_(".lora_" in name or self.config.trainable == "all")
        return self

    def own(self) -> set[str]:
        """Names of everything that is not the plain U-Net."""
        new = {name for name in self.state_dict() if not name.startswith("unet.")}
        return new | {f"unet.{name}" for name in adapters(self.unet)}


def with_adapters(layer: LoraLayer, x: torch.Tensor, branches: tuple[str, ...]) -> torch.Tensor:
    """The layer of x (n B, N, C), each of the n equal parts of the batch with the adapter of its
    branch.

    peft's own `adapter_names` does the same by index lists: a training step of the small U-Net took
    a third longer.
    """
    parts = zip(branches, x.chunk(len(branches)), strict=True)
    return layer.base_layer(x) + torch.cat(
        [layer.lora_B[name](layer.lora_A[name](part)) * layer.scaling[name] for name, part in parts]
    )


class _Attention:
    """diffusers attention processor: the layer with its branch's adapters, background and
    interaction.
    """

    def __init__(self, owner: DualAnoDiffUNet, key: str):
        self.owner, self.key = owner, key

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        owner = self.owner
        project = lambda layer, x: with_adapters(layer, x, owner.branches)
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if self.key in owner.compensation:
            if owner.writing:
                owner.features[self.key] = hidden_states
            elif owner.features:
                source = owner.compensation[self.key](hidden_states, owner.features[self.key])
        heads = lambda x: x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        q, k, v = (
            project(attn.to_q, hidden_states),
            project(attn.to_k, source),
            project(attn.to_v, source),
        )
        out = (
            F.scaled_dot_product_attention(heads(q), heads(k), heads(v)).transpose(1, 2).flatten(2)
        )
        out = project(attn.to_out[0], out)
        return out if owner.writing else owner.interaction[self.key](out)
