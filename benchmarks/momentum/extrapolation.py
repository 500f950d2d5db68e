"""A cost model's word on the setting of 1-bit Adam's paper: BERT-Large, 64 GPUs, Ethernet. Nothing here is measured.

A step of Adam is the compute and a ring all-reduce of fp16 gradients; a step of the compressed phase is the compute and
the two-phase exchange of the exact payload, an all-to-all and an all-gather (alpha: seconds per message, beta: seconds
per byte, n ranks):

    ring(B)        2 (n - 1) alpha + 2 (n - 1)/n B beta
    two-phase(s)   2 (n - 1) alpha + s beta,    s: bytes that a rank sends, from a dry run

Compute is the published profile's: a step of 2351 ms, of which the all-reduce takes 2206 ms (BERT-Large, 64 V100s,
batch 1 per GPU, Ethernet of 40 Gbit/s of which 4.1 are effective).

Assumed. Links: every rank has those 4.1 Gbit/s to itself (share 1), or four GPUs of a host share them (share 4: a ring
crosses a host's link once, so its time stays; in an all-to-all all four send to other hosts at once). Latency: paid
once per step, since buckets are in flight together. Overlap: none; or Adam's exchange hides all of its compute (a step
takes the longer of the two), and the compressed phase, which sends after the backward pass, hides none. Not modelled:
coding on a GPU, which was never measured, and congestion.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, NamedTuple

from common import write

import compcomm as cc
from compcomm.core.optional import need
from compcomm.report import tables

Row = dict[str, Any]
RANKS, GPUS = 64, 4
BITS, ALPHA = 4.1e9, 50e-6
STEP, ALL_REDUCE = 2.351, 2.206
SHARES = (0.15, 0.25)
PUBLISHED = {"end_to_end": 3.3, "compressed": 6.6}
"""Times sooner than Adam: end to end (Tang et al. 2021, abstract), and in the compressed phase (DeepSpeed's blog)."""


def bert_large(width: int = 1024, layers: int = 24) -> list[tuple[str, tuple[int, ...]]]:
    """The parameters of BERT-Large for pre-training: 336,226,108 elements.

    Three embeddings and a norm, layers of attention and of four times the width, a pooler, and the heads of the two
    tasks; the words' output layer is the embedding. Source: Devlin et al. 2019 (arXiv:1810.04805), section 3.

    >>> from math import prod
    >>> len(bert_large()), sum(prod(shape) for _, shape in bert_large())
    (398, 336226108)
    """
    shapes: list[tuple[str, tuple[int, ...]]] = []

    def norm(name: str) -> None:
        shapes.extend([(f"{name}.weight", (width,)), (f"{name}.bias", (width,))])

    def linear(name: str, into: int, out: int) -> None:
        shapes.extend([(f"{name}.weight", (out, into)), (f"{name}.bias", (out,))])

    for name, rows in (("word", 30522), ("position", 512), ("type", 2)):
        shapes.append((f"embeddings.{name}.weight", (rows, width)))
    norm("embeddings.norm")
    for i in range(layers):
        for name in ("query", "key", "value", "output"):
            linear(f"layer.{i}.attention.{name}", width, width)
        norm(f"layer.{i}.attention.norm")
        linear(f"layer.{i}.widen", width, 4 * width)
        linear(f"layer.{i}.narrow", 4 * width, width)
        norm(f"layer.{i}.norm")
    linear("pooler", width, width)
    linear("words.transform", width, width)
    norm("words.norm")
    shapes.append(("words.bias", (30522,)))
    linear("next_sentence", width, 2)
    return shapes


class Link(NamedTuple):
    """Ranks, and the link that each has or ``share`` of them have together."""

    ranks: int
    share: int
    alpha: float
    beta: float

    def ring(self, nbytes: float) -> float:
        """Seconds of a ring all-reduce."""
        return 2 * (self.ranks - 1) * self.alpha + 2 * (self.ranks - 1) / self.ranks * nbytes * self.beta

    def two_phase(self, sent: float) -> float:
        """Seconds of an all-to-all and an all-gather in which a rank sends ``sent`` bytes in all, half in each."""
        out = self.share * (self.ranks - self.share) / (self.ranks - 1)  # of what a rank sends in an all-to-all
        return 2 * (self.ranks - 1) * self.alpha + sent / 2 * (out + 1) * self.beta


def rows(layout: cc.Layout) -> list[Row]:
    """One row for each sharing of the links and each overlap."""
    reducer = cc.ErrorFeedback(cc.SignScale())
    sent = cc.cost(reducer, layout, RANKS).sent
    half, compute = 2 * layout.numel, STEP - ALL_REDUCE
    found: list[Row] = []
    for share in (1, GPUS):
        link = Link(RANKS, share, ALPHA, 8 / BITS)
        ring, coded = link.ring(half), link.two_phase(sent)
        for overlap in (False, True):
            adam = max(compute, ring) if overlap else compute + ring
            compressed = compute + coded
            row = {
                "ranks": RANKS,
                "share": share,
                "overlap": overlap,
                "dense_bytes": 2 * (half * (RANKS - 1) // RANKS),
                "payload_bytes": sent,
                "compute_seconds": compute,
                "dense_exchange_seconds": ring,
                "exchange_seconds": coded,
                "dense_seconds": adam,
                "compressed_seconds": compressed,
                "speedup": adam / compressed,
                "speedup_profiled": STEP / compressed,
            }
            for warm in SHARES:
                mean = warm * adam + (1 - warm) * compressed
                row[f"end_to_end_{warm}"] = adam / mean
                row[f"end_to_end_profiled_{warm}"] = STEP / (warm * STEP + (1 - warm) * compressed)
            found.append(row)
    return found


def main(options: argparse.Namespace) -> None:
    layout = cc.Layout.of(bert_large())
    found = rows(layout)
    columns = ["setting", "Adam, ms", "compressed, ms", "sooner", *(f"end to end,\n{w:.0%} warm-up" for w in SHARES)]
    lines = [
        [
            described(row),
            f"{row['dense_seconds'] * 1e3:.0f}",
            f"{row['compressed_seconds'] * 1e3:.0f}",
            tables.times(row["speedup"]),
            *(tables.times(row[f"end_to_end_{w}"]) for w in SHARES),
        ]
        for row in found
    ]
    lines += [
        [
            f"Adam's step as profiled; {described(row)}",
            f"{STEP * 1e3:.0f}",
            f"{row['compressed_seconds'] * 1e3:.0f}",
            tables.times(row["speedup_profiled"]),
            *(tables.times(row[f"end_to_end_profiled_{w}"]) for w in SHARES),
        ]
        for row in found
        if not row["overlap"]
    ]
    lines.append(
        ["published", "", "", tables.times(PUBLISHED["compressed"]), tables.times(PUBLISHED["end_to_end"]), ""]
    )
    title = f"predicted, not measured: BERT-Large ({layout.numel:,} parameters), {RANKS} GPUs, {BITS / 1e9:g} Gbit/s"
    note = "coding on a GPU is not modelled: it makes the compressed phase slower than this."
    console = need("rich.console", "optimizers.py").Console(width=None if sys.stdout.isatty() else 160)
    console.print(tables.table(title, columns, lines, note))
    if options.json:
        write(
            options.json, "optimizers-model", found, model="BERT-Large", numel=layout.numel, bits_per_second=BITS,
            alpha=ALPHA, profiled={"step": STEP, "all_reduce": ALL_REDUCE}, published=PUBLISHED, warm_up=SHARES,
        )  # fmt: skip
        print(f"written: {options.json}")


def described(row: Row) -> str:
    links = "a link each" if row["share"] == 1 else f"{row['share']} GPUs share a link"
    return f"{links}, {'Adam hides its compute' if row['overlap'] else 'no overlap'}"
