"""What a session averages by what: the reducer at work, its state, and the parameters by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..core.compressor import Compressor
from ..core.layout import Layout, joined
from ..core.reducer import Reducer
from ..core.state import Store
from ..core.structure import check_optimizer
from ..routes.choose import settle
from .host import Host
from .options import Options
from .scheduler import Scheduler


def nameless(call: str, host: Host) -> str:
    """Why what needs names cannot be done."""
    return f"{call}: parameters have no names yet. {host.nameless}"


class Setup:
    """What may change between two steps, always on every rank at the same one."""

    def __init__(
        self,
        options: Options,
        reducer: Reducer,
        parameters: Sequence[tuple[str, nn.Parameter]] | None,
        scheduler: Scheduler,
        layouts: Sequence[Layout] = (),
        rows: bool = False,
    ) -> None:
        """``layouts``: of the buckets that will come, where they are no whole parameters."""
        self.options, self.reducer = options, reducer
        self.rows = rows
        """Whether each rank wants its own row of a mean alone."""
        self._layouts = tuple(layouts)
        self.named = parameters is not None
        """Whether parameters have their real names."""
        self.parameters = list(parameters or ())
        self.unaveraged: Callable[[], Sequence[str]] = tuple
        """Names what trains and is in no bucket, where the host can tell."""
        self.replicas: Callable[[], Sequence[tuple[str, Tensor]]] = lambda: self.parameters
        """What each rank has all of, and all the same."""
        self.shards: Callable[[], tuple[int, Sequence[tuple[str, Tensor]]]] | None = None
        """Where other ranks have other shards: which one this rank has, and what it holds of every parameter."""
        self._scheduler = scheduler

    @property
    def store(self) -> Store:
        """The reducer's state."""
        return self._scheduler.store

    @property
    def layout(self) -> Layout:
        """All parameters, one after the other."""
        return Layout.of((n, p.shape) for n, p in self.parameters)

    @property
    def dense(self) -> int:
        """Elements that a rank would average without compression: of rows with their padding."""
        return sum(layout.numel for layout in self.expected) if self.rows else sum(self.elements.values())

    @property
    def elements(self) -> dict[str, int]:
        """The size of each parameter, of a sharded one what this session averages of it; before parameters have names,
        of those that have been in a bucket."""
        if not self.named:
            return {part.name: part.numel for layout in self._scheduler.layouts for part in layout.segments}
        found = dict.fromkeys((n for n, _ in self.parameters), 0)
        for layout in self.expected:
            for s in layout.segments:
                found[s.name] = found.get(s.name, 0) + s.numel
        return found

    def parts(self, layout: Layout) -> tuple[tuple[str, Layout], ...]:
        """What this session averages of each parameter of a bucket, alone in a buffer."""
        shapes = {s.name: s.shape for s in layout.segments}
        if self.rows:
            return tuple((n, Layout.of([(n, shape)]).sharded(self.store.world)) for n, shape in shapes.items())
        return tuple((n, joined(Layout([s]).packed() for s in layout.segments if s.name == n)) for n in shapes)

    def switch(self, reducer: Reducer | Compressor) -> None:
        """Averages by another reducer from the next step on. Its memory begins anew, as at attach; ``reducer`` must be
        equal on all ranks.

        Raises:
            ValueError: it does not fit the model or the optimizer. What runs goes on as it was.
        """
        rank, world, device = self.store.rank, self.store.world, self.store.device
        settled = settle(reducer, world, rows=self.rows)
        settled.check(self.layout if self._scheduler.within is not None else joined(self.expected))
        check_optimizer(settled, self.options.groups(self.parameters))
        store = Store(settled, rank, world, device, rows=self.rows)
        within = self._scheduler.within
        for expected in self._scheduler.layouts:
            store.declare(expected if within is None else within.own(expected))
        for expected in self.expected:
            store.declare(expected)
        self.options, self.reducer = replace(self.options, reducer=reducer), settled
        self._scheduler.change(store)

    @property
    def expected(self) -> tuple[Layout, ...]:
        """Buckets, all of which together hold every parameter once."""
        return self._layouts or (self.layout,)

    def configuration(self) -> Any:
        """What ``switch`` changes, for ``restore``."""
        return self.options, self.reducer, self.store

    def restore(self, configuration: Any) -> None:
        """As it was."""
        self.options, self.reducer, store = configuration
        if store is not self.store:
            self._scheduler.change(store)

    def rename(self, names: Mapping[str, str], parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
        """Gives parameters their real names: random numbers are keyed by name."""
        self.store.rename(names)
        self.parameters, self.named = list(parameters), True
        self.store.declare(self.layout)
        self._scheduler.last = []
        self._scheduler.layouts.clear()

    def admit(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
        """Takes parameters that the host averages too, as its first step shows. In the same order on every rank.

        Raises:
            ValueError: the reducer cannot take them.
        """
        self.reducer.check(Layout.of((n, p.shape) for n, p in (*self.parameters, *parameters)))
        self.parameters.extend(parameters)

    def expect(self, layouts: Sequence[Layout]) -> None:
        """Buckets are cut so from now on."""
        self._layouts = tuple(layouts)
