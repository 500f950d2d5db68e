"""What an attachment has done so far, as numbers and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from math import isfinite
from typing import Any, NamedTuple

from ..adaptive.formatting import SHOWN, columns, value
from ..adaptive.telemetry import Telemetry
from ..combine import setting as tunable
from ..core.former import asked
from ..core.layout import Layout
from ..core.reducer import Reducer
from ..core.state import Merge, State, Store
from ..core.structure import choices, controllers, current, scheduled
from ..core.tables import table
from ..transports.dry_run import dense_bytes, plan
from .running_flow import RunningFlow
from .setup import Setup
from .steps import Steps

_ERROR = "error: relative to gradient plus residual, in the last step"
_FED_BACK = "; what is lost is fed back, not gone"
_EXACT = "-: the parameter travels exact (or had no gradient, or has no feedback)"
_APART = "-: the parameter travels exact (or has no setting of its own)"


class Counters(NamedTuple):
    """``step``: averaged backward passes so far, ``steps``: those since attach or load_state_dict. Sums over these on
    this rank: bytes, link headers apart, and seconds. ``controlled``: whether a controller chooses settings.
    ``resumes``: how often the sums have begun anew."""

    step: int
    steps: int
    bytes_sent: int
    kernel_seconds: float
    wire_seconds: float
    exposed_seconds: float
    review_seconds: float
    controlled: bool
    resumes: int = 0

    def since(self, earlier: Counters) -> Counters:
        """The sums less those of ``earlier``; all of them where they have begun anew in between. Steps that were
        discarded meanwhile count below zero."""
        if self.resumes != earlier.resumes or self.bytes_sent < earlier.bytes_sent:
            return self
        return self._replace(
            steps=self.steps - earlier.steps,
            bytes_sent=self.bytes_sent - earlier.bytes_sent,
            kernel_seconds=self.kernel_seconds - earlier.kernel_seconds,
            wire_seconds=self.wire_seconds - earlier.wire_seconds,
            exposed_seconds=self.exposed_seconds - earlier.exposed_seconds,
            review_seconds=self.review_seconds - earlier.review_seconds,
        )


@dataclass(frozen=True)
class Report:
    """Means per step since attach or load_state_dict, exact steps (warm-up, ``enabled = False``) too; bytes are one
    rank's, link headers apart.

    ``kernel_seconds``: coding and decoding. ``wire_seconds``: a collective was in flight (other work may have gone on
    meanwhile). ``exposed_seconds``: the backward pass had ended and waited. ``relative_error``: |x - C(x)| / |x| of the
    last good step by parameter, where x is the gradient plus the residual; None where nothing is fed back.

    ``review_seconds``: what controllers did between steps. ``elements`` by parameter; ``parameter_bytes``: what each
    would send alone, a header of some 24 bytes included, by a dry run of its packing; ``choices``: what a controller
    gave it, and ``tunable`` what that is, "density", "bits" or "rank". ``conserves``: nothing is lost for good.
    ``weight_bytes``: sent besides, in coded all-gathers of weights, and ``weight_bytes_dense`` what those would send in
    fp32. ``bytes_dense``: of an all-reduce in fp32; of a reduce-scatter where each rank wants its own row of the mean;
    of one ring through all ranks where DDP averages within nodes and between them, this rank's share of what leaves its
    node. ``kind``: what there are ``world`` of, a "rank" or a "node".
    """

    reducer: str
    world: int
    steps: int
    bytes_sent: float
    bytes_dense: float
    kernel_seconds: float
    wire_seconds: float
    exposed_seconds: float
    state_bytes: int
    relative_error: Mapping[str, float | None]
    review_seconds: float = 0.0
    elements: Mapping[str, int] = field(default_factory=dict[str, int])
    parameter_bytes: Mapping[str, int] = field(default_factory=dict[str, int])
    choices: Mapping[str, float] = field(default_factory=dict[str, float])
    tunable: str = ""
    conserves: bool = True
    weight_bytes: float = 0.0
    weight_bytes_dense: float = 0.0
    kind: str = "rank"

    def __getattr__(self, name: str) -> Any:
        return asked(self, name, {"knob": "tunable"})

    @property
    def ratio(self) -> float:
        """Dense bytes over sent bytes."""
        return self.bytes_dense / self.bytes_sent if self.bytes_sent else float("inf")

    def as_dict(self) -> dict[str, Any]:
        """All fields and the ratio, ready for JSON: None for what is no finite number, as the ratio where nothing was
        sent."""
        return {name: _strict(value) for name, value in {**asdict(self), "ratio": self.ratio}.items()}

    def __str__(self) -> str:
        ratio = f"{self.ratio:.1f}x" if self.bytes_sent else "-"
        lines = [
            f"{self.reducer} {'on' if self.kind == 'rank' else 'between'} {self.world} {self.kind}"
            f"{'s' * (self.world != 1)}, {self.steps} step{'s' * (self.steps != 1)}",
            f"  bytes sent per step  {self.bytes_sent:>14,.0f}   dense {self.bytes_dense:,.0f}   {ratio}",
            f"  seconds per step: in kernels {self.kernel_seconds:.6f}, on the wire {self.wire_seconds:.6f}, "
            f"exposed {self.exposed_seconds:.6f}",
            f"  bytes of state       {self.state_bytes:>14,}",
        ]
        if self.weight_bytes:
            times = f"{self.weight_bytes_dense / self.weight_bytes:.1f}x"
            lines.insert(
                2,
                f"  and of weights       {self.weight_bytes:>14,.0f}   dense {self.weight_bytes_dense:,.0f}   {times}",
            )
        if self.review_seconds:
            lines.append(f"  seconds per step in reviews {self.review_seconds:.6f}")
        return "\n".join([*lines, *self._lines()] if self._lossy or self.choices else lines)

    def table(self) -> Any:
        """All parameters as a rich table, the largest first. Needs ``compcomm[bench]``."""
        rows = [self._row(n) for n in self._names()]
        return table(self.reducer, self._head(), rows, "\n".join(self._notes(rows)))

    @property
    def _lossy(self) -> bool:
        """Whether the last step's errors are known."""
        return any(e is not None for e in self.relative_error.values())

    def _names(self) -> list[str]:
        return sorted(self.elements or self.relative_error, key=lambda n: (-self.elements.get(n, 0), n))

    def _head(self) -> tuple[str, ...]:
        setting = (self.tunable or "setting",) if self.choices else ()
        return "parameter", "elements", "bytes", *setting, *(("error",) if self._lossy else ())

    def _row(self, name: str) -> tuple[str, ...]:
        numel, sent = self.elements.get(name), self.parameter_bytes.get(name)
        chosen, error = self.choices.get(name), self.relative_error.get(name)
        setting = ("-" if chosen is None else value(chosen),) if self.choices else ()
        lost = ("-" if error is None else f"{error:.4f}",) if self._lossy else ()
        return name, *("-" if n is None else f"{n:,}" for n in (numel, sent)), *setting, *lost

    def _notes(self, rows: Sequence[Sequence[str]]) -> list[str]:
        """What "error" and "-" mean, where the table has them."""
        dashes = any("-" in row[3:] for row in rows)
        found = [_ERROR + _FED_BACK * self.conserves] if self._lossy else []
        return [*found, _EXACT if self._lossy else _APART] if dashes else found

    def _lines(self) -> list[str]:
        """The largest parameters, and the rest in one line."""
        names = self._names()
        rows = [self._head(), *map(self._row, names[:SHOWN])]
        notes = self._notes(rows)
        if rest := names[SHOWN:]:
            numel, sent = (sum(of.get(n, 0) for n in rest) for of in (self.elements, self.parameter_bytes))
            rows.append((f"and {len(rest)} more", f"{numel:,}", f"{sent:,}", *[""] * (len(rows[0]) - 3)))
        return [*columns(rows), *(f"  {note}" for note in notes)]


class Statistics:
    """Counts for one session, and reports. Reports wait until the last step is over; ``counters`` and ``scheduled`` do
    not, and may be asked while a step's review still goes on."""

    def __init__(self, setup: Setup, steps: Steps) -> None:
        self._setup, self._steps = setup, steps
        self._resumes = 0
        self._wire_before = steps.transport.seconds

    def restart(self) -> None:
        """Sums begin anew."""
        self._resumes += 1
        self._wire_before, self._steps.exposed = self._steps.transport.seconds, 0.0

    def exclude_from_timing(self, seconds: float) -> None:
        """Leaves so many seconds on the wire out of reports: they were not training's."""
        self._wire_before += seconds

    def report(self) -> Report:
        """See ``Attachment.report``."""
        self._steps.synchronize()
        c, setup, s = self.counters(), self._setup, self._steps.scheduler
        steps, world, sizes = max(1, c.steps), self._steps.transport.world, setup.elements
        at = s.number if self.scheduled() else 1 << 30
        return Report(
            reducer=repr(setup.reducer),
            world=world,
            steps=c.steps,
            bytes_sent=c.bytes_sent / steps,
            bytes_dense=float(self.dense_bytes),
            kernel_seconds=c.kernel_seconds / steps,
            wire_seconds=c.wire_seconds / steps,
            exposed_seconds=c.exposed_seconds / steps,
            state_bytes=setup.store.nbytes() + (0 if s.before is None else s.before.nbytes()),
            relative_error=self.errors(),
            review_seconds=c.review_seconds / steps,
            elements=sizes,
            parameter_bytes=self._parameter_bytes(at),
            choices=self.choices(),
            tunable=noun(setup.reducer),
            conserves=all(setup.reducer.promises(s).conserves for s in setup.store.segments()),
            kind="rank" if s.everyone is self._steps.transport else "node",
        )

    def errors(self) -> dict[str, float | None]:
        """A report's ``relative_error``, alone. It decodes what the last step sent: some passes over the gradient."""
        self._steps.synchronize()
        return {} if self._steps.open else relative_errors(self._steps.scheduler.last, self._setup.store)

    def counters(self) -> Counters:
        """What has been sent and how long it took."""
        s = self._steps.scheduler
        return Counters(
            step=s.number,
            steps=s.number - s.first,
            bytes_sent=s.sent,
            kernel_seconds=s.kernel_seconds,
            wire_seconds=self._steps.transport.seconds - self._wire_before,
            exposed_seconds=self._steps.exposed,
            review_seconds=s.review_seconds,
            controlled=next(controllers(self._setup.reducer), None) is not None,
            resumes=self._resumes,
        )

    @property
    def dense_bytes(self) -> int:
        """See ``Attachment.dense_bytes``."""
        setup, world, within = self._setup, self._steps.transport.world, self._steps.scheduler.within
        if within is not None:
            return dense_bytes(sum(within.own(e).numel for e in setup.expected), world * within.world)
        return dense_bytes(setup.dense, world, setup.rows)

    def choices(self) -> dict[str, float]:
        """See ``Attachment.choices``."""
        self._steps.synchronize()
        store = self._setup.store
        return {**self.scheduled(), **choices(self._setup.reducer, store.segments(), store)}

    def scheduled(self) -> dict[str, float]:
        """What schedules alone give in the next step."""
        return scheduled(self._setup.reducer, self._setup.store.segments(), self._steps.scheduler.number)

    def telemetry(self) -> list[Telemetry]:
        """See ``Attachment.telemetry``."""
        self._steps.synchronize()
        store = self._setup.store
        found: Any = controllers(self._setup.reducer, store.segments())
        return [controller.telemetry(segments, store) for controller, segments in found]

    def _parameter_bytes(self, step: int) -> dict[str, int]:
        """What each parameter would send alone, with the decisions that controllers have taken."""
        setup, found = self._setup, dict[str, int]()
        chosen = next(controllers(setup.reducer), None) is not None
        for layout in setup.expected:
            reducer = current(setup.reducer, State(setup.store, layout)) if chosen else setup.reducer
            found.update(parameter_bytes(reducer, setup.parts(layout), setup.store.world, step, setup.rows))
        return found


def _strict(value: Any) -> Any:
    """As strict JSON has it."""
    if isinstance(value, Mapping):
        return {name: _strict(one) for name, one in value.items()}
    return None if isinstance(value, float) and not isfinite(value) else value


def noun(reducer: Reducer) -> str:
    """What its controllers choose: "density", "bits" or "rank"; "" where there are none, or they differ."""
    found = {tunable.NOUNS.get(tunable.field(controller), "") for controller, _ in controllers(reducer)}
    return found.pop() if len(found) == 1 else ""


@lru_cache(maxsize=512)
def parameter_bytes(
    reducer: Reducer, parts: tuple[tuple[str, Layout], ...], world: int, step: int = 1 << 30, rows: bool = False
) -> Mapping[str, int]:
    """What each parameter would send alone in a step; without those that cannot be asked alone."""
    found: dict[str, int] = {}
    for name, layout in parts:
        with suppress(ValueError):
            found[name] = sum(p.sent for p in plan(reducer, layout, world, step=step, rows=rows))
    return found


def relative_errors(flows: Sequence[RunningFlow], store: Store) -> dict[str, float | None]:
    """|x - C(x)| / |x| by parameter, from the residual that a step left and the payload that it sent."""
    found: dict[str, float | None] = {}
    squares: dict[str, tuple[float, float]] = {}  # of the error and of what it is relative to, over all pieces
    fed_back = (e for e in store.entries() if e.slot.pending and e.slot.merge is Merge.MEAN)  # of a rank's own coding
    unsent = {(e.segment.name, e.segment.offset): e for e in fed_back}
    for flow in flows:
        layout, sent = flow.layout, flow.result.sent
        found.update((s.name, None) for s in layout.segments)
        held = [(s, unsent[s.name, s.offset]) for s in layout.segments if (s.name, s.offset) in unsent]
        held = [(s, e) for s, e in held if e.segment.numel == s.numel]  # PowerSGD's is that of whole parameters
        if sent is None or not held:
            continue
        given = sent.dense(layout).flat
        for s, e in held:
            codec = e.slot.codec
            error = e.tensor if codec is None else codec.read(e.tensor, s.numel, 0, s.numel)
            lost, all_of_it = squares.get(s.name, (0.0, 0.0))
            lost += float(error.square().sum())
            squares[s.name] = lost, all_of_it + float((error + given[s.start : s.stop]).square().sum())
    found.update((name, (lost / norm) ** 0.5 if norm > 0 else None) for name, (lost, norm) in squares.items())
    return found
