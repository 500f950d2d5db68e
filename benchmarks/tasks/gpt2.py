"""GPT-2 small, its 124 million parameters by their own names, on the words of the text."""

from __future__ import annotations

import re
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn import functional

from compcomm.plan import shapes

from . import Batch, text

HEADS, CONTEXT, BATCH = 12, 128, 2


class GPT2(nn.Module):
    """Ids [n, length] to logits [n, length, words]; the output layer is the embedding. ``quick``: two narrow blocks.

    Source of the architecture: Radford et al. 2019; weights are drawn from N(0, 0.02^2).
    """

    def __init__(self, quick: bool = False) -> None:
        super().__init__()
        self.width, self.blocks = (48, 2) if quick else (768, 12)
        self.named = nn.ParameterDict()
        generator = torch.Generator().manual_seed(0)
        for name, shape in shapes.gpt2(self.width, self.blocks):
            norm = ".ln_" in f".{name}"
            value = torch.ones(shape) if norm else 0.02 * torch.randn(shape, generator=generator)
            made = torch.zeros(shape) if name.endswith("bias") else value
            self.named[name.replace(".", "/")] = nn.Parameter(made)

    def of(self, name: str) -> Tensor:
        """A parameter by GPT-2's name for it."""
        return self.named[name.replace(".", "/")]

    def norm(self, name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(x, (self.width,), self.of(f"{name}.weight"), self.of(f"{name}.bias"))

    def project(self, name: str, x: Tensor) -> Tensor:
        return x @ self.of(f"{name}.weight") + self.of(f"{name}.bias")

    def forward(self, ids: Tensor) -> Tensor:
        n, length = ids.shape
        x = self.of("wte.weight")[ids] + self.of("wpe.weight")[:length]
        for block in range(self.blocks):
            at = f"h.{block}"
            mixed = self.project(f"{at}.attn.c_attn", self.norm(f"{at}.ln_1", x))
            heads = mixed.view(n, length, 3, HEADS, self.width // HEADS).permute(2, 0, 3, 1, 4)
            attended = functional.scaled_dot_product_attention(*heads.unbind(), is_causal=True)
            x = x + self.project(f"{at}.attn.c_proj", attended.transpose(1, 2).reshape(n, length, self.width))
            hidden = functional.gelu(self.project(f"{at}.mlp.c_fc", self.norm(f"{at}.ln_2", x)), approximate="tanh")
            x = x + self.project(f"{at}.mlp.c_proj", hidden)
        return self.norm("ln_f", x) @ self.of("wte.weight").T


class Tokens:
    """The text as words and punctuation marks, numbered by how often they come: most of 50,257 ids never do."""

    def __init__(self) -> None:
        words = re.findall(r"\w+|[^\w\s]", text.load().characters)
        code = {word: i for i, (word, _) in enumerate(Counter(words).most_common(50257))}
        self.ids = torch.tensor([code[word] for word in words if word in code])

    def batch(self, step: int) -> Batch:
        draw = torch.Generator().manual_seed(step)
        starts = torch.randint(len(self.ids) - CONTEXT - 1, (BATCH,), generator=draw)
        taken = self.ids[starts[:, None] + torch.arange(CONTEXT + 1)]
        return Batch(taken[:, :-1], taken[:, 1:])
