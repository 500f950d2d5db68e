"""The state of ``ddp_hook``: a reducer and the names of what buckets show, of which an attachment is made."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from ..core.compressor import Compressor
from ..core.layout import Layout
from ..core.reducer import Reducer
from ..core.state import StateError
from ..engine.attachment import Attachment
from ..engine.options import Options
from ..engine.pace import NOTHING, Kind, Pace
from ..engine.remainder import Remainder
from ..engine.saved import Portable
from ..engine.setup import nameless
from ..engine.statistics import Report
from ..engine.witness import Witness
from ..routes.exact import Exact
from .auto import Auto, AutoController
from .bypass import Bypass
from .joining import decline, patience
from .names import DDP, averaged, check_dtype, every, expected, those, unaveraged, unfrozen
from .nodes import Topology, check_between, check_inside, group_between, two_levels
from .sharded import check_whole_parameter


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
            each parameter once; or the process group, or the one-dimensional DeviceMesh, of the ranks that are as this
            one in their nodes. Needs the parameters' names: ``attach``, or ``bind(model)`` first.
        inside: what codes gradients and means inside a node, such as ``QSGD(bits=8, rounding="nearest")``; what it
            loses of gradients is not fed back. None: they are exact.
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
        between: str | dist.ProcessGroup | DeviceMesh | None = None,
        inside: Compressor | None = None,
    ) -> None:
        self.between, self.inside = group_between(between), inside
        self.topology: Topology | None = None
        """Of the attachment, where its ranks average within nodes and between them."""
        check_between(self.between)
        check_inside(inside, between)
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
        if self.between is not None and self._bound is None:
            decline(StateError(nameless(f"DDPState(between={self.between!r})", DDP)), self.group, device)
        levels = two_levels(self.between, self.group, device, self.timeout, self._bound or (), self.inside)
        self.topology = levels.topology
        facts = {"auto": repr(self.auto)}
        attachment = Attachment(
            levels.transport, self.options, self._bound, trial=trial, facts=facts, pace=self.pace,
            within=levels.within, shard=levels.shard,
        )  # fmt: skip
        attachment.enabled, attachment.setup.unaveraged = self._enabled, self._alone
        attachment.witness = self.witness
        if self.auto is not None:
            self.controller = AutoController(self.auto, attachment, partial(Bypass, self.group))
            attachment.observers.insert(0, self.controller)
        self.attachment = attachment
        return attachment

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
            optimizer=o.optimizer, discardable=o.discardable, between=self.between, inside=self.inside,
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
