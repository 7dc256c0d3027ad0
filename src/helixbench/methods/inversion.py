"""Textual inversion (Gal et al. 2022): a word for each defect type, learned as vectors in the place of its token."""

from __future__ import annotations

import torch
from torch import nn

from helixbench.diffusion.base import BaseModel
from helixbench.errors import UserError
from helixbench.methods.latents import words


class LearnedWords(nn.Module):
    """`count` vectors a defect type, starting as the embeddings of the words of its name."""

    def __init__(self, base: BaseModel, defects: list[str], count: int):
        super().__init__()
        self.defects = list(defects)
        table = base.text_encoder.get_input_embeddings().weight.detach()
        rows = []
        for defect in self.defects:
            ids = base.tokenizer(words(defect)).input_ids[1:-1]
            rows.append(table[[ids[i % len(ids)] for i in range(count)]])
        self.vectors = nn.Parameter(torch.stack(rows).clone())

    def embed(self, base: BaseModel, prompt: str, defect: str) -> torch.Tensor:
        """Text embedding (L, D) of a prompt in which `*` stands for the defect's word, with gradients to its vectors."""
        if defect not in self.defects:
            raise UserError(f"defect type {defect}: this model was trained on {', '.join(self.defects)} only; train again")
        vectors = self.vectors[self.defects.index(defect)]
        before, after = (base.tokenizer(part).input_ids[1:-1] if part.strip() else [] for part in prompt.split("*"))
        begin, end = base.tokenizer("").input_ids[:2]
        ids = [begin, *before, *[end] * len(vectors), *after, end]
        longest = base.tokenizer.model_max_length
        if len(ids) > longest:
            raise UserError(f"prompt {prompt!r}: longer than the {longest} tokens of the text encoder; shorten it")
        ids += [base.tokenizer.pad_token_id] * (longest - len(ids))
        first = 1 + len(before)

        def replace(module, args, out):
            return torch.cat([out[:, :first], vectors[None].to(out), out[:, first + len(vectors) :]], dim=1)

        device = base.text_encoder.device
        hook = base.text_encoder.get_input_embeddings().register_forward_hook(replace)
        try:
            with torch.autocast(device.type, enabled=False):
                return base.text_encoder(torch.tensor([ids], device=device)).last_hidden_state[0]
        finally:
            hook.remove()
