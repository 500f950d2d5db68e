"""What bounds a training step, from three times that were measured: compute, kernels, wire.

Compute is a step of the same model that averages nothing, taken while all ranks compute, as they share cores. Kernels
is the time in which an attachment encoded and decoded. Wire is what the bytes that were sent take at the link's rate;
where no rate is known, the time in which collectives were in flight, which holds waiting for a peer or for a core too.
Much of the wire's time passes while the backward pass goes on, so the longest of the three is what has to get shorter
first: a method that sends less helps where that is the wire.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

from loop import step
from ranks import Ranks
from tasks import Task

from compcomm.report.plots import short

Row = Mapping[str, Any]
PARTS = ("compute", "kernels", "wire")


def compute_seconds(task: Task, ranks: Ranks, *, seed: int = 0, steps: int = 15) -> float:
    """A step without communication: the median on the slowest rank, while the others take theirs."""
    module = task.model(seed)
    optimizer, schedule = task.optimizer(module)
    batches = [task.batch(seed, i, ranks.rank) for i in range(steps)]
    ranks.agree(0)  # begin together
    times = [perf_counter()]
    for batch in batches:
        step(module, batch, optimizer, schedule)
        times.append(perf_counter())
    taken = [b - a for a, b in pairwise(times)]
    return ranks.slowest([median(taken[steps // 5 :])])[0]


def bound(row: Row) -> str | None:
    """The part that takes longest; None where no attachment told the times."""
    if row.get("kernel_seconds") is None:
        return None
    times = _times(row)
    return PARTS[times.index(max(times))]


def _times(row: Row) -> list[float]:
    """Compute, kernels, wire."""
    link = row["link_seconds"]
    return [row["compute_seconds"], row["kernel_seconds"], row["wire_seconds"] if link is None else link]


def why(rows: Sequence[Row]) -> str:
    """One line on the first row that sent less than an earlier one and reached its loss no sooner, with the times that
    explain it. Where each row that sent less came sooner: that cores and not the link bound all steps, or else ""."""
    for i, less in enumerate(rows):
        for more in sorted(rows[:i], key=lambda row: row["payload_bytes_per_step"]):
            if less["bound"] and _no_sooner(less, more):
                return _reason(less, more)
    if all(row["bound"] in ("compute", "kernels") for row in rows):
        return "No row is bound by the wire: here the cores limit the steps, and not the link."
    return ""


def _no_sooner(less: Row, more: Row) -> bool:
    """Whether ``less`` sent clearly less than ``more``, which reached the target, and was not there before it."""
    first, second = more["seconds_to_target"], less["seconds_to_target"]
    sent = less["payload_bytes_per_step"] < 0.9 * more["payload_bytes_per_step"]
    return sent and first is not None and (second is None or second >= first)


def _reason(less: Row, more: Row) -> str:
    factor = more["payload_bytes_per_step"] / less["payload_bytes_per_step"]
    measured = ", ".join(f"{part} {_ms(time)}" for part, time in zip(PARTS, _times(less), strict=True))
    own, other = less["steps_to_target"], more["steps_to_target"]
    needed = f"did not reach that loss in {less['steps']}" if own is None else f"needed {own:.0f} to that loss"
    return (
        f"{_name(less)} sent {factor:.2g} times less than {_name(more)} and came no sooner: its "
        f"steps took {_ms(less['seconds_per_step'])} where the other's took {_ms(more['seconds_per_step'])}, bound by "
        f"{less['bound']} ({measured}, in part side by side), and it {needed} where the other needed {other:.0f}."
    )


def _name(row: Row) -> str:
    plain = row["reducer"] == "None" and row.get("host", "ddp") not in ("ddp", "hierarchical")
    return f"{row['host']} without a reducer" if plain else short(row["reducer"])


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
