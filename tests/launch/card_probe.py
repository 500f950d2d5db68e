"""One rank of test_card_counts.py: steps of several reducers, and the card's count beside the promise of `cc.cost`."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import torch.distributed as dist

import compcomm as cc
from compcomm.engine.options import Options
from compcomm.hosts.joining import connect
from compcomm.report import network_card

CASES = {  # about a megabyte of payload per step and rank: matrices, and biases that travel exact
    "ErrorFeedback(TopK(ratio=0.1))": 2_000_000,
    "TwoPhase(QSGD(bits=4))": 2_000_000,
    "RandK(ratio=0.1)": 2_000_000,
    "Exact()": 250_000,
}


def count(text: str, numel: int, steps: int, interface: str | None) -> dict[str, Any]:
    """This rank: bytes per step by the card and by the dry run, and messages per step. A card of a lab is nobody
    else's; on one that others use too, three rounds are counted."""
    rank, world = dist.get_rank(), dist.get_world_size()
    third = numel // 3 // 500
    shapes = [[(f"{b}.weight", (third, 500)), (f"{b}.bias", (500,))] for b in range(3)]
    layouts = [cc.Layout.of(found) for found in shapes]
    parameters: Any = [(n, torch.nn.Parameter(torch.empty(s))) for bucket in shapes for n, s in bucket]
    reducer = cc.parse(text)
    attachment = cc.Attachment(connect(None, torch.device("cpu"), 20), Options(reducer), parameters)
    flats = [torch.randn(lay.numel, generator=torch.Generator().manual_seed(rank)) for lay in layouts]

    def step() -> None:
        attachment.begin_step()
        for b, (flat, layout) in enumerate(zip(flats, layouts, strict=True)):
            attachment.submit(cc.Bucket(flat.clone(), layout), last=b == 2)
        attachment.end_step()

    rounds: list[float] = []
    step()
    for _ in range(3 if interface else 1):
        dist.barrier()
        before = network_card.transmitted(interface)
        for _ in range(steps):
            step()
        dist.barrier()  # until then a slower rank may still draw bytes from this card
        rounds.append((network_card.transmitted(interface) - before) / steps)
    attachment.detach()
    promised = [cc.cost(reducer, layout, world, rank) for layout in layouts]
    return {
        "reducer": text,
        "card": rounds,
        "payload": sum(c.sent for c in promised),
        "messages": sum(len(c.collectives) for c in promised) * 2 * (world - 1),  # a ring has as many
    }


def main(interface: str | None) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for text, numel in CASES.items():
        print("COUNT", json.dumps(count(text, numel, 3, interface)), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
