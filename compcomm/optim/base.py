"""What the optimizers share: they own the communication of a model, and hold their moments as flat vectors."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.compressor import Compressor
from ..core.reducer import Reducer
from ..engine.statistics import Report
from ..hosts.joining import decline, patience
from . import checkpoint, recall
from .averaging import Averaging
from .options import check_warmup, feedback
from .parameters import find


class CompressedOptimizer(Averaging):
    """Base of the optimizers with compressed momentum. To write one, give what ``Contract`` lacks.

    It takes a model (DDP or not, compiled or not), parameters or groups. A DDP model's single hook is taken: in the
    warm-up DDP's backward pass averages gradients by ``warmup``; from then on they stay local. Without DDP all
    communication is in ``step()``.

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
        ddp_averages: bool,
        check: Callable[[], None],
    ) -> None:
        # Before torch's __init__, which calls our ``add_param_group``.
        self._call = type(self).__name__
        self._closed = self._checked = False
        self._left = []
        self._ignored = set()
        self._flat = None
        self._spare = None
        self._driven, self._scaled, self._apart = False, True, False
        self._names = {}
        self._facts = dict(facts)
        self._seed = seed
        self._warmup = warmup
        self._hook = None
        self.dense = None
        self.exchange = None
        self.group = group
        ddp: Any = None
        # What one rank refuses it tells its peers (``decline``): they wait for it where exchanges are agreed on.
        try:
            check()
            self._timeout = patience(timeout, self._call)
            source = find(self._call, given, params)
            ddp = source.ddp
            if group is None and ddp is not None:
                self.group = ddp.process_group
            self._left, self._ignored = source.left, source.alone
            self.reducer = feedback(self._call, compressor)
            self.world = dist.get_world_size(self.group) if dist.is_available() and dist.is_initialized() else 1
            if self.world < 1:
                raise ValueError(f"{self._call}(group=...): this rank is not in the group.")
            # torchrun has started several processes: alone, each would train a model of its own, without a word.
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
        self._ddp_averages = ddp_averages and ddp is not None
        self._build()

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
        self._check_attached("step")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_replicas()
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
            self.check_group(self.param_groups[-1])
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
        self._check_attached("report")
        found = self.attachment
        if found is None:
            return Report(repr(self.reducer), self.world, self.steps, 0.0, 0.0, 0.0, 0.0, 0.0, 0, {})
        return found.report()

    def state_dict(self) -> dict[str, Any]:
        """This rank's state, exact: moments, steps and groups in the form of ``torch.optim``, and what this rank failed
        to send (see ``compcomm.optim.checkpoint``). Save every rank's; it resumes bit for bit with as many ranks. Loads
        with ``weights_only=True``. ``torch.distributed.checkpoint.state_dict.get_optimizer_state_dict`` keeps all of
        it, and ``set_optimizer_state_dict`` gives it back; of parameters that DDP ignores it keeps one rank's."""
        self._check_attached("state_dict")
        return checkpoint.exact(self, super().state_dict())

    def portable_state_dict(self) -> dict[str, Any]:
        """The same for any number of ranks: what ranks failed to send is merged. Collective: every rank calls it,
        between the same two steps, and gets the same, but for its own moments of parameters that DDP ignores."""
        self._check_attached("portable_state_dict")
        return checkpoint.portable(self, super().state_dict())

    def load_state_dict(self, state_dict: Any) -> None:
        """Takes what ``state_dict`` of this rank or ``portable_state_dict`` of any number of ranks returned.
        Collective: every rank calls it, between the same two steps. Load a ``GradScaler``'s state too: in the warm-up
        all ranks need the same scale.

        Raises:
            StateError: on every rank, where on one of them it is of another optimizer, model, rank, step or number of
                ranks. What runs goes on as it was.
        """
        self._check_attached("load_state_dict")
        recall.load(self, state_dict, super().load_state_dict)

    def detach(self) -> None:
        """Ends the threads; neither the optimizer nor its DDP model takes a further step."""
        self._close()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            f"{self._call} has threads and process groups, and is neither copied nor pickled. Save its state_dict(), "
            f"and load that into a new one."
        )

    def _check_attached(self, call: str) -> None:
        if self._closed:
            raise RuntimeError(f"{self._call}.{call}: this optimizer is detached. Make a new one, and a new DDP(...).")

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
