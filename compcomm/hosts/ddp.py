"""The hook of DistributedDataParallel, in the form that PyTorch asks for.

``model.register_comm_hook(cc.DDPState(reducer), cc.ddp_hook)`` works wherever a DDP model can be reached;
``state.bind(model)`` gives the parameters their names later. ``cc.attach`` does both and checks more.

What DDP does around a hook (torch 2.8 and later): the hook owns the division; buckets are rebuilt after the first step;
an exception in a future arrives as "Unable to cast ... to Tensor", without type and traceback. So our futures always
end well (with NaN where a step failed), and the error travels otherwise: the last bucket's call queues a callback on
the autograd engine, which queues another behind DDP's own end of the backward pass; that one raises the original.

After a backward pass of the user's that raised in the middle, DDP refuses the next forward pass ("Expected to have
finished reduction in the prior iteration") until ``model.reducer._reset_state()``. If it raised at the same place on
all ranks, so that each had handed over the same buckets, training may go on so: the next bucket 0 ends the old step
first. An attachment that broke says so in the next forward pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..core.compressor import Compressor
from ..core.layout import Bucket, Layout
from ..core.reducer import Reducer
from ..core.source import Source
from ..core.state import StateError
from ..engine.attachment import Attachment
from ..engine.local_state import Shard
from ..engine.options import Options
from ..engine.pace import NOTHING, Kind, Pace
from ..engine.remainder import Remainder
from ..engine.saved import Portable
from ..engine.setup import nameless
from ..engine.statistics import Report
from ..engine.witness import Witness
from ..routes.exact import Exact
from ..routes.within import Within, deal
from .auto import Auto, AutoController
from .backward import as_it_is, engine, refuse_pairs
from .bypass import Bypass
from .joining import connect, decline, patience
from .names import DDP, averaged, check_dtype, every, expected, those, unaveraged, unfrozen
from .nodes import Topology, connect_nodes
from .sharded import check_whole_parameter

GradBucket: Any = dist.GradBucket  # pyright: ignore[reportPrivateImportUsage]


class DDPState:
    """The state of ``ddp_hook``: a reducer, and from the first bucket on its attachment.

    Unbound, parameters are called "0", "1", ... in the order in which buckets first show them, equal on all ranks; what
    needs names (``Partition``, ``check_every``) needs ``bind(model)`` before the first backward pass.

    Args:
        reducer: a reducer, a compressor, or ``Auto()``, which picks one.
        group: the ranks to average over; the default group if None. A group of our own is made over them.
        timeout: seconds (or timedelta) that one collective may take; None: torch's default, 30 minutes.
        scaler: a GradScaler, so that residuals are kept unscaled.
        seed: of all random numbers; equal on all ranks.
        check_every: compares all parameters over the ranks after every that many steps; 0: never.
        optimizer: what steps the parameters, or a tuple of several: for reducers that must rule out what it does
            (``DGC``, a second momentum). It is looked at once, when the attachment is made.
        between: "nodes" averages exactly among the ranks of a node, and by the reducer between nodes, whose links carry
            each parameter once; or the process group of the ranks that are as this one in their nodes. Needs the
            parameters' names: ``attach``, or ``bind(model)`` first.
        discardable: keeps a copy of memory from before each step, so that ``discard()`` can take the step back: the
            bytes of the state once more, and one pass over them in the background of the backward pass.
    """

    def __init__(
        self,
        reducer: Reducer | Compressor | Auto,
        *,
        group: dist.ProcessGroup | None = None,
        timeout: timedelta | float | None = None,
        scaler: Any = None,
        seed: int = 0,
        check_every: int = 0,
        optimizer: Any = None,
        discardable: bool = False,
        between: str | dist.ProcessGroup | None = None,
    ) -> None:
        self.between = between
        self.topology: Topology | None = None
        """Of the attachment, where its ranks average within nodes and between them."""
        if between is not None and between != "nodes" and not isinstance(between, dist.ProcessGroup):
            raise ValueError(
                f"attach(between={between!r}): of a DistributedDataParallel model it is 'nodes', or the process group "
                f"of the ranks that are as this one in their nodes."
            )
        self.auto = reducer if isinstance(reducer, Auto) else None
        given = Exact() if isinstance(reducer, Auto) else reducer
        self.options = Options(given, scaler, seed, check_every, optimizer, discardable, DDP)
        self.group, self.timeout = group, patience(timeout)
        self.attachment: Attachment | None = None
        self.controller: AutoController | None = None
        """What picks the reducer, where the user left that to ``Auto``."""
        self._enabled = True
        self.pace = Pace()
        self.witness = Witness(self.pace)
        self.remainder = Remainder()
        self._names: dict[int, str] = {}
        self._seen: dict[int, nn.Parameter] = {}
        """What buckets have shown; kept, so that no id is used twice."""
        self._layouts: dict[tuple[int, ...], Layout] = {}
        self._bound: list[tuple[str, nn.Parameter]] | None = None
        self._alone: Callable[[], list[str]] = list

    def bind(self, model: nn.Module) -> None:
        """Takes the parameters' names from a model (DDP or the module inside). Call it on every rank alike.

        Raises:
            StateError: it lacks parameters that were in buckets, or a backward pass has not ended.
            ValueError: parameters were unfrozen since DDP(...), which averages them no more than before.
        """
        self.name(model, "bind")

    def name(self, model: nn.Module, call: str) -> None:
        """``bind``, for whoever calls it otherwise."""
        model = getattr(model, "_orig_mod", model)
        names = every(model)
        unknown = [p for key, p in self._seen.items() if key not in names]
        if unknown:
            raise StateError(
                f"{call}: {len(unknown)} parameters that had gradients are not in this model. Give the DDP model that "
                f"has the hook."
            )
        if isinstance(model, nn.parallel.DistributedDataParallel):
            parameters = averaged(model)
            alone = unfrozen(model, {id(p) for _, p in parameters})
            if alone:
                raise ValueError(f"{call}: {unaveraged(alone)}")
        else:
            parameters = expected(model) if self.attachment is None else those(model, self._seen)
        if self.attachment is not None:
            self.attachment.steps.between("bind")
            self.pace.last = None
            self.attachment.setup.rename({self._names[key]: names[key] for key in self._seen}, parameters)
        self._names, self._layouts, self._bound = names, {}, parameters
        self._alone = partial(_alone, weakref.ref(model), self._seen)
        if self.attachment is not None:
            self.attachment.setup.unaveraged = self._alone

    def open(self, device: torch.device, trial: Callable[[Reducer, Layout], None] | None = None) -> Attachment:
        """Makes the attachment: collective over the group.

        Raises:
            ValueError: ``Auto`` on an accelerator, whose kernels it cannot time yet.
        """
        if self.auto is not None and device.type != "cpu":
            raise ValueError(f"{self.auto!r} on {device.type}: {self.auto.unmeasured}")
        facts = {"auto": repr(self.auto), "between": str(self.between and type(self.between).__name__)}
        attachment = self._attachment(device, trial, facts)
        attachment.enabled, attachment.setup.unaveraged = self._enabled, self._alone
        attachment.witness = self.witness
        if self.auto is not None:
            self.controller = AutoController(self.auto, attachment, partial(Bypass, self.group))
            attachment.observers.insert(0, self.controller)
        self.attachment = attachment
        return attachment

    def _attachment(self, device: torch.device, trial: Any, facts: dict[str, Any]) -> Attachment:
        options: dict[str, Any] = {"trial": trial, "facts": facts, "pace": self.pace}
        if self.between is None:
            return Attachment(connect(self.group, device, self.timeout), self.options, self._bound, **options)
        if self._bound is None:
            decline(StateError(nameless(f"DDPState(between={self.between!r})", DDP)), self.group, device)
        transport, found, everyone = connect_nodes(self.between, self.group, device, self.timeout)
        self.topology = found
        if found is not None:
            ranks = len(found.nodes[0])
            shapes = {n: tuple(p.shape) for n, p in self._bound}
            owners = deal(((n, p.numel()) for n, p in self._bound), ranks)
            options["within"] = Within(found.local, ranks, owners)
            options["shard"] = Shard(everyone, found.local, ranks, shapes)
        return Attachment(transport, self.options, self._bound, **options)

    def report(self) -> Report:
        """See ``Attachment.report``."""
        if self.attachment is None:
            raise RuntimeError("DDPState.report: nothing has been averaged yet. Ask after the first backward pass.")
        return self.attachment.report()

    @property
    def enabled(self) -> bool:
        """See ``Attachment.enabled``."""
        return self._enabled if self.attachment is None else self.attachment.enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise TypeError(f"enabled = {value!r}: give True or False, the same on every rank.")
        self._enabled = value
        if self.attachment is not None:
            self.attachment.enabled = value

    @property
    def passes(self) -> int:
        """See ``Attachment.passes``."""
        return self.pace.passes

    @passes.setter
    def passes(self, value: int) -> None:
        self.pace.passes = value

    def ignoring(self, average: bool = True) -> AbstractContextManager[None]:
        """See ``Attachment.ignoring``."""
        return self.pace.ignoring(average)

    def discard(self) -> None:
        """See ``Attachment.discard``."""
        if self.attachment is not None:
            self.attachment.discard()
        elif self.pace.last is None:
            raise StateError(NOTHING)
        else:
            self.pace.restart()  # passes that were not averaged

    def __deepcopy__(self, memo: dict[int, Any]) -> DDPState:
        """A state that has averaged nothing yet. The copy of a DDP model, as ``AveragedModel(ddp)`` makes it, has no
        hook in its reducer, whatever the model had."""
        o = self.options
        given = o.reducer if self.auto is None else self.auto
        return DDPState(
            given, group=self.group, timeout=self.timeout, scaler=o.scaler, seed=o.seed, check_every=o.check_every,
            optimizer=o.optimizer, discardable=o.discardable, between=self.between,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """See ``Attachment.state_dict``."""
        return self._opened("state_dict").state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``Attachment.load_state_dict``."""
        self._met("load_state_dict").load_state_dict(state)

    def portable_state_dict(self) -> dict[str, Any]:
        """See ``Attachment.portable_state_dict``. Collective: call it on every rank."""
        return self._met("portable_state_dict").portable_state_dict()

    def load_portable_state_dict(self, state: dict[str, Any]) -> None:
        """See ``Attachment.load_portable_state_dict``."""
        self._met("load_portable_state_dict").load_portable_state_dict(state)

    @property
    def portable(self) -> Portable:
        """See ``Attachment.portable``."""
        return Portable(self)

    def rescale_error(self, old_lr: float, new_lr: float) -> None:
        """See ``Attachment.rescale_error``."""
        self._opened("rescale_error").rescale_error(old_lr, new_lr)

    def _opened(self, call: str) -> Attachment:
        if self._bound is None:
            raise StateError(nameless(call, DDP))
        if self.attachment is None:
            return self.open(self._bound[0][1].device if self._bound else torch.device("cpu"))
        return self.attachment

    def _met(self, call: str) -> Attachment:
        """For what every rank calls: a rank that cannot leaves the others not waiting."""
        if self.attachment is not None:
            return self.attachment  # which asks them
        if self._bound is None:
            decline(StateError(nameless(call, DDP)), self.group, torch.device("cpu"))
        return self._opened(call)

    def look(self, flat: Tensor, kind: Kind) -> None:
        """At a pass's first bucket: has an optimizer taken the last step's mean?"""
        if kind in (Kind.STEP, Kind.PART):
            self.witness.look(flat)
        else:
            self.witness.drop()
        if kind is Kind.STEP:
            self.witness.applied = False  # the mean that is due is another one

    def tell(self) -> None:
        """Says on rank 0, after a pass, what it is that should not have become of the one before."""
        fate = self.witness.outcome()
        if fate is not None and self.attachment is not None and self.attachment.steps.transport.rank == 0:
            self.witness.speak(fate, self.attachment.reducer)

    def layout(self, bucket: Any, parameters: list[Any]) -> Layout:
        """The bucket's layout, by parameter identity: DDP cuts and numbers its buckets anew after the first step."""
        key = tuple(map(id, parameters))
        found = self._layouts.get(key)
        if found is None:
            self._meet(parameters)
            found = Layout.of((self._names[id(p)], p) for p in parameters)
            if found.numel != bucket.buffer().numel():
                raise RuntimeError(
                    f"ddp_hook: DDP's bucket has {bucket.buffer().numel()} elements where its parameters have "
                    f"{found.numel}: their shapes have changed. Make DDP(...) anew after changing parameters."
                )
            self._layouts[key] = found
        return found

    def _meet(self, parameters: list[Any]) -> None:
        """Takes in what a bucket shows: what ``bind`` left out as it was frozen by then comes in DDP's buckets too."""
        for p in parameters:
            if id(p) not in self._names:
                if self._bound is not None:
                    raise StateError(
                        f"ddp_hook: a bucket has a parameter of shape {list(p.shape)} that is not in the model that "
                        f"bind() was given. Call state.bind(ddp_model) with the model that has the hook."
                    )
                self._names[id(p)] = str(len(self._names))
            check_dtype(self._names[id(p)], p.dtype, "ddp_hook")
            check_whole_parameter("ddp_hook", self._names[id(p)], p)
            self._seen[id(p)] = p
        if self._bound is not None:
            known = {id(p) for _, p in self._bound}
            late = [(self._names[id(p)], p) for p in parameters if id(p) not in known]
            if late and self.attachment is not None:
                self.attachment.setup.admit(late)
            self._bound.extend(late)


def _alone(model: weakref.ref[nn.Module], held: Container[int]) -> list[str]:
    """What trains in a model and is in no bucket. The model is not kept alive: DDP holds its hook where no garbage
    collector looks."""
    found = model()
    return [] if found is None else unfrozen(found, held)


def ddp_hook(state: DDPState, bucket: Any) -> torch.futures.Future[Tensor]:
    """Averages one bucket; registered with a ``DDPState``."""
    refuse_pairs(bucket)
    flat, index, last = bucket.buffer(), bucket.index(), bucket.is_last()
    try:
        pace, attachment = state.pace, state.attachment
    except AttributeError:
        raise TypeError(
            f"ddp_hook: its state is {state!r}. Wrap the reducer: "
            f"model.register_comm_hook(cc.DDPState(reducer), cc.ddp_hook)."
        ) from None
    kind = pace.take(index == 0, last)
    if index == 0:
        state.remainder.clear()  # of a pass that raised
    if not kind.sent:
        if attachment is not None:
            attachment.check()
        if last:
            state.witness.keep(bucket.parameters()[-1])
        if index == 0:
            state.look(flat, kind)
        return as_it_is(flat)
    bypass = None if state.controller is None else state.controller.bypass
    if attachment is not None and bypass is not None:
        return _past_us(state, attachment, bypass, bucket, kind)
    if flat.layout != torch.strided:
        raise TypeError("ddp_hook: a sparse gradient has no flat bucket. Build the embedding with sparse=False.")
    parameters = bucket.parameters()
    if last:
        state.witness.keep(parameters[-1])
    layout = state.layout(bucket, parameters)
    check_dtype(layout.segments[0].name if layout.segments else "", flat.dtype, "ddp_hook")
    attachment = attachment or state.open(flat.device)
    if index == 0:
        attachment.abandon_step()  # of a pass that raised
        attachment.begin_step(kind is Kind.STEP)
    future = attachment.submit(Source(Bucket(flat, layout)), last=last)
    if index == 0:
        state.look(flat, kind)
    if kind is Kind.STEP and state.passes > 1:
        state.remainder.add(flat, parameters, layout)
    if last:
        try:
            engine.queue_callback(partial(_after_ddp, state, attachment, kind, len(parameters) if index == 0 else 0))
        except RuntimeError:  # not inside a backward pass: DDP's join() shadows one
            attachment.end_step()
    return future


def _past_us(state: DDPState, attachment: Attachment, bypass: Bypass, bucket: Any, kind: Kind) -> Any:
    """Averages one bucket as DDP does without a hook."""
    flat, last = bucket.buffer(), bucket.is_last()
    if bucket.index() == 0:
        state.look(flat, kind)
    if last:
        state.witness.keep(bucket.parameters()[-1])
    if kind is Kind.STEP and state.passes > 1:
        parameters = bucket.parameters()
        state.remainder.add(flat, parameters, state.layout(bucket, parameters))
        if last:
            with suppress(RuntimeError):  # not inside a backward pass: DDP's join() shadows one
                engine.queue_callback(partial(engine.queue_callback, state.remainder.deliver))
    attachment.check()
    future, sent = bypass.average(flat)
    attachment.steps.bypassed(sent, last and kind is Kind.STEP)
    return future


def _after_ddp(state: DDPState, attachment: Attachment, kind: Kind, alone: int) -> None:
    attachment.steps.waiting()
    engine.queue_callback(partial(_end, state, attachment, kind, alone))


def _end(state: DDPState, attachment: Attachment, kind: Kind, alone: int) -> None:
    step = attachment.end_step()
    if kind is Kind.STEP:
        state.remainder.deliver()
        if attachment.enabled and step is not None:
            state.witness.note(step, alone)
    state.tell()


# DDP compares these with the classes themselves, not with their names.
ddp_hook.__annotations__ = {
    "state": DDPState, "bucket": GradBucket, "return": torch.futures.Future[Tensor]
}  # fmt: skip
