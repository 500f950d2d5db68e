"""What all ranks must agree on before the first step, compared as JSON: a difference is an error on every rank."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..core.collectives import AllGather
from ..core.transport import Transport
from .host import SCRIPT, Host

_LIMIT = 1 << 26
"""Bytes: no rank's facts are longer, and a peer that says so is not believed."""


class AgreementError(ValueError):
    """The ranks are configured differently."""


def gather(transport: Transport, content: bytes, call: str = "gather") -> list[bytes]:
    """Every rank's bytes, in rank order. ``call``: how errors name it."""
    device = transport.device
    length = torch.tensor([len(content)], dtype=torch.int64, device=device)
    lengths = torch.zeros(transport.world, dtype=torch.int64, device=device)
    transport.start(AllGather(length, lengths)).wait()
    sizes = [int(n) for n in lengths.numpy(force=True)]
    if any(not 0 <= n <= _LIMIT for n in sizes):
        raise AgreementError(
            f"{call}: a rank announces {max(sizes)} bytes of facts: no compcomm speaks there. Run one version of it on "
            f"every rank, and nothing else over this group."
        )
    width = max(sizes)
    send = torch.zeros(width, dtype=torch.uint8, device=device)
    send[: len(content)] = torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8)[: len(content)].to(device)
    recv = torch.zeros(width * transport.world, dtype=torch.uint8, device=device)
    transport.start(AllGather(send, recv)).wait()
    raw = recv.cpu().numpy().tobytes()
    return [raw[r * width : r * width + n] for r, n in enumerate(sizes)]


def agree(
    transport: Transport, facts: Mapping[str, Any], error: Exception | None, call: str = "", host: Host = SCRIPT
) -> None:
    """Compares ``facts`` (values that JSON can hold) over the ranks; a rank that cannot do ``call`` says so. Without a
    ``call`` they are about to make ``host``.

    Raises:
        AgreementError: naming every fact that differs, and who has which value. Equal on all ranks.
        Exception: ``error`` itself, on the rank that gave one.
    """
    begins, verb = not call, "do it" if call else host.make
    call = call or host.call
    mine = {"failed": f"{type(error).__name__}: {error}"} if error is not None else dict(facts)
    texts = gather(transport, json.dumps(mine, sort_keys=True).encode(), call)
    if error is not None:
        raise error
    all_facts: list[dict[str, Any]] = []
    for rank, text in enumerate(texts):
        try:
            said = json.loads(text)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            raise AgreementError(f"{call}: rank {rank} sent {text[:40]!r}, which is no set of facts.")
        all_facts.append(said)  # type: ignore[arg-type]
    failed = {r: f["failed"] for r, f in enumerate(all_facts) if "failed" in f}
    if failed:
        raise AgreementError(f"{call}: " + "; ".join(f"rank {r} could not {verb}: {e}" for r, e in failed.items()))
    faults = [_compare(name, [f.get(name) for f in all_facts]) for name in mine]
    faults = [f for f in faults if f]
    if faults:
        differ = "are configured differently." if begins else "are not in the same state."
        if any(" in memory format " in fault for fault in faults):
            faults.append(host.alike)
        hint = "Give every rank the same arguments." if begins else "Call it on every rank at the same step."
        raise AgreementError(f"{call}: the ranks {differ} " + " ".join(faults) + f" {hint}")


def _compare(name: str, values: Sequence[Any]) -> str:
    if all(v == values[0] for v in values):
        return ""
    if all(isinstance(v, list) for v in values):
        for at in range(max(len(v) for v in values)):
            items = [v[at] if at < len(v) else "nothing" for v in values]
            if any(i != items[0] for i in items):
                return f"{name}: entry {at} is {_who(items)}."
    return f"{name}: {_who(values)}."


def _who(values: Sequence[Any]) -> str:
    groups: dict[str, list[str]] = {}
    for rank, value in enumerate(values):
        text = value if isinstance(value, str) else json.dumps(value)
        groups.setdefault(text, []).append(str(rank))
    return ", ".join(f"{text} on rank{'s' * (len(r) > 1)} {', '.join(r)}" for text, r in groups.items())
