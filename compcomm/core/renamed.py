"""What has been renamed: the old name leads to the new one for one version, with a warning that says it."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from inspect import Parameter, signature
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


def renamed_attribute(owner: object, old: str, now: str) -> Any:
    """What a class that was written for the last version calls ``old``, with a warning; None: it has no such."""
    found = getattr(owner, old, None)
    if found is not None:
        warnings.warn(
            f"{type(owner).__name__}.{old} is now {now}; the old one goes with the next version.", FutureWarning, 3
        )
    return found


def without_find(cls: type) -> None:
    """A compressor written for the last version is not told how to find segments: its overrides get what they know."""
    for name, count in (("encode_rows", 4), ("decode_rows", 7), ("zero_rows", 4)):
        old = vars(cls).get(name)
        if not callable(old):
            continue
        takes = signature(old).parameters.values()
        if len(takes) > count + 1 or any(p.kind is Parameter.VAR_POSITIONAL for p in takes):
            continue
        warnings.warn(
            f"{cls.__name__}.{name} has one more argument now, find; without it, it goes with the next version.",
            FutureWarning,
            4,
        )
        setattr(cls, name, _called_without_the_last(old, count))


def _called_without_the_last(old: Callable[..., Any], count: int) -> Callable[..., Any]:
    @wraps(old)
    def call(self: Any, *args: Any) -> Any:
        return old(self, *args[:count])

    return call


def former(method: str, now: str, call: Callable[..., Any], *classes: type) -> None:
    """Keeps a method that has become a function: it calls that, with a warning that says so."""

    def old(self: Any, *args: Any, **kwargs: Any) -> Any:
        warnings.warn(
            f"{type(self).__name__}.{method} is now {now}; the method goes with the next version.", FutureWarning, 2
        )
        return call(self, *args, **kwargs)

    old.__name__ = method
    for known in classes:
        setattr(known, method, old)


def install() -> None:
    """Once, when ``compcomm`` is imported."""
    if not any(isinstance(finder, _Renamed) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Renamed())  # before the path's: ``compcomm.hooks`` has the path of ``compcomm.hosts``
