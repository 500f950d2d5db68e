"""A transformer of 0.8 million parameters that predicts the next character, trained with AdamW."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from . import Batch, text

LAYERS, WIDTH, HEADS, CONTEXT = 4, 128, 4, 64
BATCH = 8  # sequences per rank and step: 512 characters, 35 ms on one core with AVX-512
RATE, WARMUP = 3e-3, 20  # peak learning rate, and the steps in which it rises from zero
BLOCK = 2048  # characters that stay together where the text is divided
HELD_OUT = 128  # sequences in all on which the validation loss is taken


class Block(nn.Module):
    """Causal self-attention, then a layer of hidden units, each added to what comes in (pre-norm)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.widen, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        heads = self.query_key_value(self.norm1(x)).view(n, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(*heads.unbind(), is_causal=True)
        x = x + self.mix(attended.transpose(1, 2).reshape(n, length, WIDTH))
        return x + self.narrow(functional.gelu(self.widen(self.norm2(x)), approximate="tanh"))


class Transformer(nn.Module):
    """Characters ``[n, length]`` -> logits ``[n, length, vocabulary]``; position t sees characters 0..t."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.characters, self.positions = nn.Embedding(vocabulary, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, vocabulary)
        for name, p in self.named_parameters():
            if p.dim() == 2 and "blocks" not in name and "head" not in name:
                nn.init.normal_(p, std=0.5)  # embeddings
            elif p.dim() == 2:  # what adds to the sum over layers starts smaller, the more of it there is
                adds = "mix" in name or "narrow" in name
                nn.init.normal_(p, std=(p.shape[1] * (2 * LAYERS if adds else 1)) ** -0.5)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, x: Tensor) -> Tensor:
        h = self.characters(x) + self.positions(torch.arange(x.shape[1], device=x.device))
        return self.head(self.norm(self.blocks(h)))


class CharLM:
    """Next-character prediction; of every ten blocks of the text nine are trained on, and the last is held out.

    Blocks from all over the text, because its end alone may be of another kind than the rest (an appendix, a table),
    and the loss on it then says more about the last few batches than about the model.
    """

    name = "charlm"

    def __init__(self, found: text.Text | None = None) -> None:
        found = found or text.load()
        symbols = sorted(set(found.characters))
        code = {c: i for i, c in enumerate(symbols)}
        ids = torch.tensor([code[c] for c in found.characters])
        blocks = ids[: len(ids) // (10 * BLOCK) * 10 * BLOCK].view(-1, 10, BLOCK)
        self.train, self.held_out = blocks[:, :9].flatten(), blocks[:, 9].flatten()
        self.vocabulary = len(symbols)
        self.data = f"{found.source}, {len(ids):,} characters"

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return Transformer(self.vocabulary)

    def optimizer(self, model: nn.Module) -> tuple[torch.optim.Optimizer, LRScheduler]:
        optimizer = torch.optim.AdamW(model.parameters(), RATE, (0.9, 0.99), weight_decay=0.01, fused=True)
        return optimizer, LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP))

    def batch(self, seed: int, step: int, rank: int) -> Batch:
        draw = torch.Generator().manual_seed((seed * 1_000_003 + step) * 4096 + rank)
        return _cut(self.train, torch.randint(len(self.train) - CONTEXT, (BATCH,), generator=draw))

    def validation(self, rank: int, world: int) -> list[Batch]:
        starts = torch.linspace(0, len(self.held_out) - CONTEXT - 1, HELD_OUT).long()
        share = starts[rank : HELD_OUT // world * world : world]
        return [_cut(self.held_out, part) for part in share.split(16)]


def _cut(ids: Tensor, starts: Tensor) -> Batch:
    places = starts[:, None] + torch.arange(CONTEXT)
    return Batch(ids[places], ids[places + 1])
