"""Next-word prediction with an embedding of several thousand words: its gradient is row-sparse, as words are Zipf's."""

from __future__ import annotations

import re
from collections import Counter

import torch
from torch import Tensor, nn

from . import Batch, text

WORDS, WIDTH, HIDDEN, CONTEXT = 8192, 128, 128, 4
BATCH = 1024  # places in the text per step


class WordModel(nn.Module):
    """The embeddings of the last four words, a layer of hidden units, logits over all words.

    Source of the architecture: Bengio, Ducharme, Vincent, Jauvin 2003 (JMLR 3), without the direct connections.
    """

    def __init__(self, words: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, WIDTH)
        self.hidden, self.head = nn.Linear(CONTEXT * WIDTH, HIDDEN), nn.Linear(HIDDEN, words)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(self.words(x).flatten(1))))


class Words:
    """The text as words and punctuation marks in lower case; all but the 8,191 most frequent are one and the same."""

    def __init__(self) -> None:
        found = text.load()
        words = re.findall(r"\w+|[^\w\s]", found.characters.lower())
        code = {word: 1 + i for i, (word, _) in enumerate(Counter(words).most_common(WORDS - 1))}
        self.ids = torch.tensor([code.get(word, 0) for word in words])
        self.vocabulary = 1 + len(code)
        self.data = f"{found.source}, {len(words):,} words, {self.vocabulary:,} different ones"

    def batch(self, step: int) -> Batch:
        draw = torch.Generator().manual_seed(step)
        starts = torch.randint(len(self.ids) - CONTEXT, (BATCH,), generator=draw)
        return Batch(self.ids[starts[:, None] + torch.arange(CONTEXT)], self.ids[starts + CONTEXT])
