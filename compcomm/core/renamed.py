"""What has been renamed: the old name leads to the new one for one version, with a warning that says it."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULES = {
    "compcomm.bucket": "compcomm.core.layout",
    "compcomm.checkpoint": "compcomm.state.checkpoint",
    "compcomm.coded": "compcomm.state.quantized",
    "compcomm.collectives": "compcomm.core.collectives",
    "compcomm.compressor": "compcomm.core.compressor",
    "compcomm.portable": "compcomm.state.merging",
    "compcomm.reducer": "compcomm.core.reducer",
    "compcomm.rng": "compcomm.core.random",
    "compcomm.spec": "compcomm.core.description",
    "compcomm.store": "compcomm.core.state",
    "compcomm.wire": "compcomm.core.packing",
    "compcomm.adaptive.legacy": "compcomm.adaptive.by_size",
    "compcomm.adaptive.schedules": "compcomm.combine.schedules",
    "compcomm.feedback.scheme": "compcomm.feedback.base",
    "compcomm.feedback.uncompensated": "compcomm.combine.uncompensated",
    "compcomm.hooks": "compcomm.hosts",
    "compcomm.hooks.attach": "compcomm.hosts.attach",
    "compcomm.hooks.attachment": "compcomm.engine.attachment",
    "compcomm.hooks.auto": "compcomm.hosts.auto",
    "compcomm.hooks.ddp": "compcomm.hosts.ddp",
    "compcomm.hooks.lightning": "compcomm.hosts.lightning",
    "compcomm.hooks.saved": "compcomm.engine.saved",
    "compcomm.plan.breakeven": "compcomm.engine.breakeven",
    "compcomm.plan.known": "compcomm.plan.models_by_name",
    "compcomm.report.optional": "compcomm.core.optional",
    "compcomm.reducers": "compcomm.routes",
    "compcomm.reducers.all_gather": "compcomm.routes.all_gather",
    "compcomm.reducers.all_reduce": "compcomm.routes.all_reduce",
    "compcomm.reducers.exact": "compcomm.routes.exact",
    "compcomm.reducers.partition": "compcomm.combine.partition",
    "compcomm.reducers.powersgd": "compcomm.routes.powersgd",
    "compcomm.reducers.shared_scale": "compcomm.routes.shared_scale",
    "compcomm.reducers.sparse_all_reduce": "compcomm.routes.sparse_all_reduce",
    "compcomm.reducers.two_phase": "compcomm.routes.two_phase",
    "compcomm.reducers.warmup": "compcomm.combine.warmup",
    "compcomm.testing.shapes": "compcomm.plan.shapes",
    "compcomm.transports.simulate": "compcomm.transports.simulator",
}
"""What users import by its module; everything else has its name in ``compcomm`` itself."""

_HEADER = dict.fromkeys(("PeerError", "Flags", "read_headers", "write_header", "write_headers"), "compcomm.core.header")
MEMBERS = {
    "compcomm.adaptive.legacy": {"Legacy": "compcomm.adaptive.by_size:SizeRule"},
    "compcomm.feedback.scheme": {"Scheme": "compcomm.feedback.base:FeedbackScheme"},
    "compcomm.reducer": {
        "Arena": "compcomm.core.context",
        "Group": "compcomm.core.structure",
        "Rng": "compcomm.core.random",
        "Store": "compcomm.core.state",
        "settle": "compcomm.routes.choose",
    },
    "compcomm.wire": _HEADER,
}
"""What such a module had and its new one does not: where it is now, and as what."""
CLASSES = {"Legacy": "SizeRule"}
"""Public classes, where they are named in ``compcomm``, in descriptions and in checkpoints."""
_CLASSES = re.compile(rf"\b({'|'.join(CLASSES)})(?=\()")


class _Renamed(MetaPathFinder, Loader):
    """Finds the old name of a module that has moved; loading it gives the module under its new name."""

    _spec: ModuleSpec | None = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MODULES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = MODULES[spec.name]
        warnings.warn(f"{spec.name} is now {new}; the old name goes with the next version.", FutureWarning, 2)
        module = import_module(new)
        for name, place in MEMBERS.get(spec.name, {}).items():
            there, _, now = place.partition(":")
            setattr(module, name, getattr(import_module(there), now or name))
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """The module is there already; the import system has written the old name's spec into it, which is undone."""
        module.__spec__ = self._spec


def described(text: str) -> str:
    """A description that an earlier version wrote, in today's names."""
    return _CLASSES.sub(lambda found: CLASSES[found[1]], text)


def renamed_class(name: str) -> str | None:
    """What a public class called ``name`` is called now, with a warning; None: that was none."""
    now = CLASSES.get(name)
    if now is not None:
        warnings.warn(f"{name} is now {now}; the old name goes with the next version.", FutureWarning, 3)
    return now


def moved(name: str) -> Any:
    """What ``compcomm.<name>`` was; AttributeError where there was nothing."""
    if (now := renamed_class(name)) is not None:
        return getattr(sys.modules["compcomm"], now)
    if f"compcomm.{name}" not in MODULES:
        raise AttributeError(f"module 'compcomm' has no attribute {name!r}")
    return import_module(f"compcomm.{name}")


def install() -> None:
    """Once, when ``compcomm`` is imported."""
    if not any(isinstance(finder, _Renamed) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Renamed())  # before the path's: ``compcomm.hooks`` has the path of ``compcomm.hosts``
