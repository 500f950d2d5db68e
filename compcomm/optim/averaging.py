"""Who averages what, and when: gradients in the warm-up, by DDP's hook or in ``step``; then what is compressed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import fsum

import torch.distributed as dist
from torch import Tensor

from ..core.compressor import Compressor
from ..core.layout import Layout
from ..core.reducer import Reducer
from ..engine.attachment import Attachment
from ..hosts.announce import announce
from ..routes.choose import settle
from . import checkpoint, replicas
from .alone import Alone
from .exchange import Exchange
from .flags import Flags
from .flat import Batch, Flat
from .hook import Hook
from .options import host
from .skips import Skips


class Averaging(Skips):
    """Every rank calls the same, in the same order."""

    @property
    def attachment(self) -> Attachment | None:
        """What averages in the present phase; None: there is one rank, which sends nothing."""
        hook, dense = self._hook and self._hook.attachment, self.dense and self.dense.attachment
        warm = None if self.compressed else dense or hook
        return warm or (self.exchange and self.exchange.attachment)

    @property
    def averaged(self) -> int:
        """Averages of gradients so far, in the phase that has them: what random numbers of ``warmup`` depend on."""
        found = self.dense if self.dense is not None else self._hook and self._hook.attachment
        return found.step if found else 0

    def _average(self, exchange: Exchange | None, vector: Tensor, arrived: Callable[[Batch], None]) -> None:
        """The mean over the ranks, in place; ``arrived(batch)`` as its parts come in."""
        if exchange is not None:
            exchange.average(vector, arrived)
            return
        for batch in self.flat.batches:
            arrived(batch)

    def _ends(self, v: Tensor) -> bool:
        """Whether the warm-up ends with this step, whose variance is ``v``."""
        rates = [float(g["lr"]) for g in self.param_groups]
        agree = bool if self.exchange is None else self.exchange.all

        def size() -> float:  # batch by batch: a sum in fp64 would copy all of it
            return fsum(float(v[b.start : b.stop].sum()) for b in self.flat.batches)

        return self._freeze.due(self.steps, rates, size, agree)

    def _stop_gradient_averaging(self) -> None:
        """Gradients are no longer averaged."""
        if self._hook is not None:
            self._hook.stop_gradient_averaging()
        if self._ddp_averages:
            self._watch(True)  # until a step tells
        if self.dense is not None:
            self.dense.close()
            self.dense = None

    def _go_on(self, was_compressed: bool, averaged: int) -> None:
        """After a checkpoint is loaded, of so many averages of gradients: takes up averaging where it begins again
        (which is collective), gives it up where it is over."""
        if self.world == 1:
            return
        if self.compressed:
            if not was_compressed:
                self._stop_gradient_averaging()
            return
        if was_compressed:
            self._start_gradient_averaging()
        hooked = self._hook and self._hook.attachment
        if hooked:
            hooked.state.resume(averaged)
        if self.dense:
            self.dense.resume(averaged)

    def _announce(self, text: str) -> None:
        if self.world > 1 and dist.get_rank(self.group) == 0:
            print(f"compcomm: {self._call}: {text}", file=sys.stderr, flush=True)

    def _line(self) -> str:
        """Why the freeze comes now, and what the compressed phase sends."""
        asked = self._facts.get("freeze")
        if isinstance(asked, int) and self.steps > asked:
            self._announce(f"freeze={asked} has waited for the learning rate, or for a variance that is not zero")
        return announce(settle(self.reducer, self.world), self.flat.layout, self.world, "from here on")

    def _check_replicas(self) -> None:
        """What would make the ranks train apart, or in vain, is found out in ``step``."""
        replicas.unfrozen(self._call, self._left)
        replicas.uneven(self._call, self._ddp)
        if not self._checked and self.exchange is not None and self._ddp is None:
            self._checked = True
            transport = self.exchange.transport
            replicas.compare(self._call, transport, self.flat, self.steps, self._alike)

    @property
    def _alike(self) -> bool:
        """Whether all ranks should hold the same parameters now."""
        return True

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
        self._start_gradient_averaging()
        self._closed = False
        if dist.get_rank(self.group) == 0:
            print(lines[0], file=sys.stderr, flush=True)

    def _make(self, reducer: Compressor | Reducer, trial: Callable[[Reducer, Layout], None] | None = None) -> Exchange:
        groups = [repr({k: v for k, v in g.items() if k not in ("params", checkpoint.OURS)}) for g in self.param_groups]
        facts = {"optimizer": self._call, **self._facts, "groups": groups}
        return Exchange(reducer, self.flat, self.group, self._timeout, self._seed, facts, host(self._call), trial)

    def _start_gradient_averaging(self) -> None:
        """Gradients are averaged: by DDP's hook, or by ``dense`` in ``step``. Collective."""
        if self._ddp is not None:
            if self._hook is None:
                self._hook = Hook(self._call)
            self._hook.start_gradient_averaging(
                self._ddp, self._warmup if self._ddp_averages else None, self.group, self._timeout, self._seed
            )
        if not self._ddp_averages:
            self.dense = self._make(self._warmup)
        if not self._ddp_averages or self._apart:
            self._watch(True)  # until a step tells

    def _close(self) -> None:
        self._closed = True
        self._stop_gradient_averaging()
        if self._hook is not None:
            self._hook.closed, self._hook.alarm, self._hook.late = True, None, None
        if self.exchange is not None:
            self.exchange.close()
            self.exchange = None
