"""What the optimizers share: they own the communication of a model, and hold their moments as flat vectors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from math import fsum
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.compressor import Compressor, ops
from ..core.layout import Layout
from ..core.reducer import Reducer
from ..engine.attachment import Attachment
from ..engine.statistics import Report
from ..hosts.attach import announce
from ..hosts.joining import decline
from ..routes.choose import settle
from . import checkpoint, recall, replicas
from .alone import Alone
from .exchange import Exchange
from .flags import Flags
from .flat import Batch, Flat, Part
from .freeze import Freeze
from .hook import Hook
from .options import check_options, check_warmup, feedback
from .parameters import check_gradient, find


class CompressedOptimizer(torch.optim.Optimizer):
    """Base of the optimizers with compressed momentum. To write one, give what stands under "What a subclass gives".

    It takes a model (DDP or not, compiled or not), parameters or groups. A DDP model's single hook is taken: while the
    optimizer listens, DDP's backward pass averages gradients by ``warmup``; from ``_hang_up`` on they stay local.
    Without DDP all communication is in ``step()``.

    In ``step()`` a gradient that any rank found to be infinite or NaN skips the step on every rank, where this
    optimizer averages anything itself: nothing changes, and nothing counts. Parameters that have no gradient on any
    rank are passed over, as in ``torch.optim``. Parameters that DDP was told to ignore
    (``_set_params_and_buffers_to_ignore_for_model``) are each rank's own, of whatever shape: the rank steps them by
    Adam, at all times, and nobody compares them. What was frozen since ``DDP(...)`` is left alone.

    Gradients that no ``step()`` takes leave no trace, as in ``torch.optim``: what is remembered changes in ``step()``
    alone, and averaging in the backward pass has no memory.

    A ``GradScaler`` may drive it from the first step on. Under DDP it hears of every infinity on all ranks alike, so
    that all keep one scale: while gradients stay local, ``hook`` makes those of a bad step NaN everywhere, as averaging
    does (one byte of a message at the end of each backward pass, where a scaler is in use). Where any rank has
    parameters that DDP ignores, it does so at all times, and for theirs; ``step()`` then has flags in the warm-up too.
    What becomes infinite after the backward pass, a rank's scaler alone knows: an error while DDP averages, since all
    ranks need the same scale there; else the step is skipped as above. Without DDP nothing is said before ``step()``,
    and each rank's scaler goes by its own gradients, unless it is torch's ``ShardedGradScaler`` and
    ``scaler.unscale_(optimizer)`` is called before ``scaler.step(optimizer)``.
    """

    _step_supports_amp_scaling = True  # GradScaler then calls step() on every rank, and says what it found
    TAKES_ADAM = False  # whether it goes on from the state of torch's Adam
    OWN: tuple[str, ...] = ()  # what ``own`` may have
    bias_correction: bool = False
    _freeze: Freeze
    steps: int

    def __init__(
        self,
        given: Any,
        defaults: dict[str, Any],
        *,
        params: Any,
        compressor: Compressor | Reducer,
        warmup: Compressor | Reducer,
        group: dist.ProcessGroup | None,
        timeout: timedelta | float | None,
        seed: int,
        facts: Mapping[str, Any],
        listens: bool,
        check: Callable[[], None],
    ) -> None:
        self._call = type(self).__name__
        self._closed = self._met = False
        self._left: list[tuple[str, Tensor]] = []
        self._ignored: set[int] = set()
        self._flat: Flat | None = None
        self._spare: Tensor | None = None
        self._driven, self._scaled, self._apart = False, True, False
        self._names: dict[int, str] = {}
        self._facts = dict(facts)
        self._timeout, self._seed = timeout, seed
        self._warmup = warmup
        self._hook: Hook | None = None
        self.dense: Exchange | None = None
        self.exchange: Exchange | None = None
        self.group = group
        ddp: Any = None
        try:
            check()
            source = find(self._call, given, params)
            ddp = source.ddp
            if group is None and ddp is not None:
                self.group = ddp.process_group
            self._left, self._ignored = source.left, source.alone
            self.reducer = feedback(self._call, compressor)
            self.world = dist.get_world_size(self.group) if dist.is_available() and dist.is_initialized() else 1
            if self.world < 1:
                raise ValueError(f"{self._call}(group=...): this rank is not in the group.")
            if self.world == 1 and not dist.is_initialized() and os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
                raise RuntimeError(
                    f"{self._call}: WORLD_SIZE={os.environ['WORLD_SIZE']} and no process group: the ranks would train "
                    f"apart. Call torch.distributed.init_process_group() first."
                )
            check_warmup(self._call, warmup, self.world)
            super().__init__(self._named(source.groups), defaults)
        except Exception as error:
            decline(error, self.group, torch.device("cpu"))
        self._ddp = ddp
        self._listens = listens and ddp is not None
        self._build()

    # What a subclass gives.

    def _advance(self, scale: float, bad: bool) -> bool:
        """One step; whether this rank made it. ``scale`` times ``p.grad`` is the unscaled gradient; ``bad``: this
        rank's is not finite."""
        raise NotImplementedError

    def vectors(self) -> dict[str, Tensor]:
        """The flat vectors that are replicated and survive, by the name that they have in ``state_dict``."""
        raise NotImplementedError

    def own(self) -> dict[str, list[Tensor]]:
        """What this rank alone has of each parameter, beside what it failed to send, by its name in ``state_dict``."""
        return {}

    def check_extra(
        self, extra: Mapping[str, Any], vectors: Mapping[str, Tensor], own: Mapping[str, Sequence[Any]]
    ) -> None:
        """Raises StateError where ``load`` could not take these."""
        raise NotImplementedError

    def load(self, vectors: dict[str, Tensor], own: Mapping[str, list[Tensor]], extra: Mapping[str, Any]) -> None:
        """Takes flat vectors, a rank's own tensors and ``extra`` of a checkpoint."""
        raise NotImplementedError

    def absorb(self, residual: Tensor) -> None:
        """Takes over what several ranks had still to apply, where one rank goes on alone."""
        raise NotImplementedError

    def extra(self) -> dict[str, Any]:
        """What else survives: numbers and strings, and lists and dictionaries of them."""
        raise NotImplementedError

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raises ValueError for options that cannot be."""
        check_options(self._call, group)

    @property
    def compressed(self) -> bool:
        """Whether the warm-up is over."""
        raise NotImplementedError

    # What the user calls.

    @torch.compiler.disable
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step; every rank calls it. ``closure`` computes the loss and the gradients, once.

        Raises:
            RuntimeError: the optimizer is detached, DDP's ``join`` is at work, a parameter has a gradient that had
                ``requires_grad=False`` at first; while DDP averages, one rank's ``GradScaler`` alone has found an
                infinity; or, in the first step without DDP, the ranks' gradients are equal.
            DivergenceError: without DDP, the ranks began with different parameters.
        """
        self._open("step")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._meet()
        found: Tensor | None = getattr(self, "found_inf", None)
        scale: Tensor | None = getattr(self, "grad_scale", None)
        self._driven = found is not None
        factor = 1.0 if scale is None else 1.0 / float(scale)
        if self._advance(factor, found is not None and bool(found)):
            self.alone.step(self.param_groups, factor, self._rates, self._grads)
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters during the warm-up, on every rank alike.

        Raises:
            ValueError: the warm-up is over, the model is a DDP model, or an option cannot be.
        """
        names = dict(self._names)
        if self._flat is not None:
            if self.compressed or self._ddp is not None:
                why = (
                    "the warm-up is over, and the variance of new parameters was never measured"
                    if self.compressed
                    else "DDP(...) has fixed what it averages"
                )
                raise ValueError(
                    f"{self._call}.add_param_group: {why}. Make a new optimizer (and DDP) that holds them all."
                )
            source = find(self._call, [param_group], None)
            self._left += source.left
            (param_group,) = self._named(source.groups)
        count = len(self.param_groups)
        try:
            twice = len({id(p) for p in param_group["params"]}) < len(param_group["params"])
            if twice:
                raise ValueError(f"{self._call}: a group has the same parameter twice. Give each once.")
            super().add_param_group(param_group)
            self._check_group(self.param_groups[-1])
        except Exception:
            del self.param_groups[count:]
            self._names = names
            raise
        if self._flat is not None:
            kept, numel, averaged = self.vectors(), self._flat.numel, self.averaged
            self._close()
            self._build()
            grown = {name: self._flat.zeros() for name in kept}
            for name, vector in kept.items():
                grown[name][:numel] = vector
            self.load(grown, {}, {**self.extra(), "averaged": averaged})

    def report(self) -> Report:
        """What the present phase sent and cost, per step: see ``Attachment.report``."""
        self._open("report")
        found = self.attachment
        if found is None:
            return Report(repr(self.reducer), self.world, self.steps, 0.0, 0.0, 0.0, 0.0, 0.0, 0, {})
        return found.report()

    @property
    def attachment(self) -> Attachment | None:
        """What averages in the present phase; None: there is one rank, which sends nothing."""
        dense = self._hook.attachment if self._hook is not None else None
        dense = self.dense.attachment if self.dense is not None else dense
        found = dense if not self.compressed and dense is not None else None
        if found is None and self.exchange is not None:
            found = self.exchange.attachment
        return found

    def state_dict(self) -> dict[str, Any]:
        """This rank's state, exact: moments, steps and groups in the form of ``torch.optim``, and what this rank failed
        to send (see ``compcomm.optim.checkpoint``). Save every rank's; it resumes bit for bit with as many ranks. Loads
        with ``weights_only=True``. ``torch.distributed.checkpoint.state_dict.get_optimizer_state_dict`` keeps all of
        it, and ``set_optimizer_state_dict`` gives it back; of parameters that DDP ignores it keeps one rank's."""
        self._open("state_dict")
        return checkpoint.exact(self, super().state_dict())

    def portable_state_dict(self) -> dict[str, Any]:
        """The same for any number of ranks: what ranks failed to send is merged. Collective: every rank calls it,
        between the same two steps, and gets the same, but for its own moments of parameters that DDP ignores."""
        self._open("portable_state_dict")
        return checkpoint.portable(self, super().state_dict())

    def load_state_dict(self, state_dict: Any) -> None:
        """Takes what ``state_dict`` of this rank or ``portable_state_dict`` of any number of ranks returned.
        Collective: every rank calls it, between the same two steps. Load a ``GradScaler``'s state too: in the warm-up
        all ranks need the same scale.

        Raises:
            StateError: on every rank, where on one of them it is of another optimizer, model, rank, step or number of
                ranks. What runs goes on as it was.
        """
        self._open("load_state_dict")
        recall.load(self, state_dict, super().load_state_dict)

    def detach(self) -> None:
        """Ends the threads; neither the optimizer nor its DDP model takes a further step."""
        self._close()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            f"{self._call} has threads and process groups, and is neither copied nor pickled. Save its state_dict(), "
            f"and load that into a new one."
        )

    # What subclasses use.

    @property
    def flat(self) -> Flat:
        """The plan of the flat vectors."""
        assert self._flat is not None
        return self._flat

    @property
    def averaged(self) -> int:
        """Averages of gradients so far, in the phase that has them: what random numbers of ``warmup`` depend on."""
        dense = self._hook.attachment if self._hook is not None else None
        dense = self.dense.attachment if self.dense is not None else dense
        return 0 if dense is None else dense.step

    def _ends(self, v: Tensor) -> bool:
        """Whether the warm-up ends with this step, whose variance is ``v``."""
        rates = [float(g["lr"]) for g in self.param_groups]
        agree = bool if self.exchange is None else self.exchange.all

        def size() -> float:  # batch by batch: a sum in fp64 would copy all of it
            return fsum(float(v[b.start : b.stop].sum()) for b in self.flat.batches)

        return self._freeze.due(self.steps, rates, size, agree)

    def _begin_flags(self, bad: bool) -> Tensor:
        """A step's flags; returns where kernels say whether it is bad."""
        return self._flags.begin(bad, self._driven, [p.grad is not None for p in self.flat.params])

    def _awake(self) -> list[bool] | None:
        """Which parameters have a gradient on any rank; None: the step is bad on some rank, and is skipped."""
        told = self._flags.read(self.exchange)
        self._watch(told.scaled)
        return None if told.bad else told.awake

    def _watch(self, scaled: bool) -> None:
        """Whether DDP's hook, while it leaves gradients alone, tells all ranks of an infinity."""
        self._scaled = scaled
        if self._hook is not None:
            self._hook.alarm = self._alarm if scaled else None
            self._hook.late = self._late if scaled and self._apart else None

    def _heed(self) -> None:
        """Where no flags travel: whether a ``GradScaler`` drives any rank. Collective under DDP."""
        if self._hook is not None and self.exchange is not None:
            self._watch(not self.exchange.all(not self._driven))

    def _alarm(self, bad: bool) -> bool:
        """Whether any rank says so."""
        assert self.exchange is not None
        return not self.exchange.all(not bad)

    @torch.no_grad()
    def _late(self, bad: bool) -> None:
        """The alarm after a backward pass: what is each rank's own is looked at too, and made NaN everywhere."""
        if self._alarm(bad or self.alone.bad()):
            self.alone.spoil()
            for p in self.flat.params:
                if p.grad is not None:
                    p.grad.fill_(float("nan"))

    def _skips(self, bad: bool) -> bool:
        """Whether any rank's step is bad, where DDP has averaged the gradients: what one rank finds in them all find,
        but for those that DDP ignores.

        Raises:
            RuntimeError: a scaler alone knows of it, and its scale is no longer that of the others.
        """
        if not self._apart or self.exchange is None:
            return bad
        self._begin_flags(bad)
        if self._awake() is not None:
            return False
        if not self.exchange.all(bad):
            raise RuntimeError(
                f"{self._call}.step: one rank's GradScaler has found an infinity and another rank's has not: scales "
                f"differ from here on, and DDP would average gradients of different scales. A gradient that DDP "
                f"ignores has become infinite after the backward pass, or not every rank has a scaler. Use torch's "
                f"ShardedGradScaler, and call scaler.unscale_(optimizer) before scaler.step(optimizer)."
            )
        return True

    def _grads(self, part: Part) -> Sequence[Tensor]:
        """The part's gradients, as the flat vectors lie; an empty tensor where there is none."""
        grads = [_EMPTY if p.grad is None else p.grad for p in part.params]
        if any(g.layout is not torch.strided for g in grads):
            for p in part.params:
                if p.grad is not None:
                    check_gradient(self._call, self._names[id(p)], p.grad)
        return part.lying(grads)

    def _room(self) -> Tensor:
        """A flat vector of whatever content, made once it is needed."""
        if self._spare is None:
            self._spare = self.flat.zeros()
        return self._spare

    def _momentum(self, mean: Tensor, out: Tensor, scale: float, status: Tensor) -> None:
        """out = b1 mean + (1 - b1) g for this rank's gradient g; ``status``: whether some of it is not finite."""
        self._blend(mean, out, scale, [float(g["betas"][0]) for g in self.param_groups], 1.0, status)

    def _gather(self, finite: Tensor, out: Tensor, scale: float, status: Tensor) -> None:
        """out = this rank's gradient, unscaled, without weight decay; ``status``: whether some of it is not finite.
        ``finite``: any flat vector whose elements are."""
        self._blend(finite, out, scale, [0.0] * len(self.param_groups), 0.0, status)

    def _blend(self, mean: Tensor, out: Tensor, scale: float, betas: list[float], decay: float, status: Tensor) -> None:
        for part in self.flat.parts:
            if part.params:
                group = self.param_groups[part.group]
                sign = -scale if group["maximize"] else scale
                ops.momentum(
                    self._grads(part), part.lying(part.params), part.starts, mean, out,
                    betas[part.group], sign, decay * self._decay(group)[1], status,
                )  # fmt: skip

    def _decay(self, group: Mapping[str, Any]) -> tuple[float, float]:
        """What a step takes from a parameter, as a part of it; and what is added to its gradient, the same way."""
        if group["decoupled_weight_decay"]:
            return float(group["lr"]) * float(group["weight_decay"]), 0.0
        return 0.0, float(group["weight_decay"])

    def _found(self, part: Part, flat: Tensor) -> Sequence[Tensor]:
        """What a flat vector has for the part's parameters, as the vector lies."""
        return part.lying([self.flat.view(flat, n) for n in part.numbers])

    def _rates(self, group: Mapping[str, Any], step: int) -> tuple[float, float, float, float]:
        """Of a rank's own parameters: see ``alone.Rates``."""
        return (*self._corrected(group, step), *self._decay(group))

    def _corrected(self, group: Mapping[str, Any], step: int) -> tuple[float, float]:
        """The rate, and what sqrt(v) is multiplied by, in the step of this number; with ``bias_correction`` Adam's."""
        rate = float(group["lr"])
        if not self._facts.get("bias_correction") or not step:
            return rate, 1.0
        b1, b2 = map(float, group["betas"])
        return rate / (1.0 - b1**step), (1.0 - b2**step) ** -0.5

    def _average(self, exchange: Exchange | None, vector: Tensor, arrived: Callable[[Batch], None]) -> None:
        """The mean over the ranks, in place; ``arrived(batch)`` as its parts come in."""
        if exchange is not None:
            exchange.average(vector, arrived)
            return
        for batch in self.flat.batches:
            arrived(batch)

    def _hang_up(self) -> None:
        """Gradients are no longer averaged."""
        if self._hook is not None:
            self._hook.hang_up()
        if self._listens:
            self._watch(True)  # until a step tells
        if self.dense is not None:
            self.dense.attachment.detach()
            self.dense = None

    def _go_on(self, was_compressed: bool, averaged: int) -> None:
        """After a checkpoint is loaded, of so many averages of gradients: takes up averaging where it begins again
        (which is collective), gives it up where it is over."""
        if self.world == 1:
            return
        if self.compressed:
            if not was_compressed:
                self._hang_up()
            return
        if was_compressed:
            self._listen()
        for found in (self._hook and self._hook.attachment, self.dense and self.dense.attachment):
            if found:
                found.state.resume(averaged)

    def _say(self, text: str) -> None:
        if self.world > 1 and dist.get_rank(self.group) == 0:
            print(f"compcomm: {self._call}: {text}", file=sys.stderr, flush=True)

    def _line(self) -> str:
        """Why the freeze comes now, and what the compressed phase sends."""
        asked = self._facts.get("freeze")
        if isinstance(asked, int) and self.steps > asked:
            self._say(f"freeze={asked} has waited for the learning rate, or for a variance that is not zero")
        return announce(settle(self.reducer, self.world), self.flat.layout, self.world, "from here on")

    # Inside.

    def _open(self, call: str) -> None:
        if self._closed:
            raise RuntimeError(f"{self._call}.{call}: this optimizer is detached. Make a new one, and a new DDP(...).")

    @property
    def _alike(self) -> bool:
        """Whether all ranks should hold the same parameters now."""
        return True

    def _meet(self) -> None:
        """What would make the ranks train apart, or in vain, is found out in ``step``."""
        replicas.unfrozen(self._call, self._left)
        replicas.uneven(self._call, self._ddp)
        if not self._met and self.exchange is not None and self._ddp is None:
            self._met = True
            transport = self.exchange.attachment.transport
            replicas.compare(self._call, transport, self.flat, self.steps, self._alike)

    def _named(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Groups as torch wants them; names are kept here."""
        found: list[dict[str, Any]] = []
        used = set(self._names.values())
        for group in groups:
            for name, p in group["params"]:
                if isinstance(p, Tensor) and id(p) not in self._names:
                    name = name if name not in used else f"{name}#{len(used)}"
                    used.add(name)
                    self._names[id(p)] = name
            found.append({**group, "params": [p for _, p in group["params"]]})
        return found

    def _build(self) -> None:
        self._spare = None
        groups = [[(self._names[id(p)], p) for p in group["params"]] for group in self.param_groups]
        self._flat = Flat([[(n, p) for n, p in group if id(p) not in self._ignored] for group in groups])
        self.alone = Alone([[(n, p) for n, p in group if id(p) in self._ignored] for group in groups])
        self._flags = Flags(len(self._flat.params), self._flat.device)
        checkpoint.mark(self)
        self._closed = False
        if self.world == 1:
            return
        self._closed = True  # until all of it is there
        lines: list[str] = []

        def trial(settled: Reducer, everything: Layout) -> None:
            freeze = self._facts.get("freeze")
            when = "until the variance is stable" if freeze == "auto" else f"of {freeze} steps"
            lines.append(announce(settled, everything, self.world, f"compcomm: {self._call}, after a warm-up {when}"))

        self.exchange = self._make(self.reducer, trial)
        self._apart = not self.exchange.all(not self.alone.flat.params)
        self._listen()
        self._closed = False
        if dist.get_rank(self.group) == 0:
            print(lines[0], file=sys.stderr, flush=True)

    def _make(self, reducer: Compressor | Reducer, trial: Callable[[Reducer, Layout], None] | None = None) -> Exchange:
        groups = [repr({k: v for k, v in g.items() if k not in ("params", checkpoint.OURS)}) for g in self.param_groups]
        facts = {"optimizer": self._call, **self._facts, "groups": groups}
        return Exchange(reducer, self.flat, self.group, self._timeout, self._seed, facts, trial)

    def _listen(self) -> None:
        """Gradients are averaged: by DDP's hook, or by ``dense`` in ``step``. Collective."""
        if self._ddp is not None:
            if self._hook is None:
                self._hook = Hook(self._call)
            self._hook.listen(self._ddp, self._warmup if self._listens else None, self.group, self._timeout, self._seed)
        if not self._listens:
            self.dense = self._make(self._warmup)
        if not self._listens or self._apart:
            self._watch(True)  # until a step tells

    def _close(self) -> None:
        self._closed = True
        self._hang_up()
        if self._hook is not None:
            self._hook.closed, self._hook.alarm, self._hook.late = True, None, None
        if self.exchange is not None:
            self.exchange.attachment.detach()
            self.exchange = None


_EMPTY = torch.empty(0, dtype=torch.float32)
