"""One language for Python, the command line and YAML: ``repr`` is how you make it, ``parse`` reads it back.

>>> import compcomm as cc
>>> cc.parse("ErrorFeedback(TopK(ratio=0.01))")
ErrorFeedback(TopK(ratio=0.01))
"""

from __future__ import annotations

import ast
import math
import warnings
from dataclasses import MISSING, fields
from difflib import get_close_matches
from typing import Any, ClassVar

import torch

from . import installed
from .renamed import renamed_class

_VALUES: dict[str, Any] = {
    "inf": math.inf,
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}


class Described:
    """A frozen dataclass whose ``repr`` is the shortest constructor call that makes it, and that ``parse`` knows."""

    registry: ClassVar[dict[str, type[Described]]] = {}

    def __init_subclass__(cls, *, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if abstract or cls.__name__.startswith("_"):
            return
        held = Described.registry.get(cls.__name__)
        if held is not None and is_ours(held) and not is_ours(cls):
            warnings.warn(
                f"{cls.__module__}.{cls.__name__} has the name of one of ours: parse({cls.__name__ + '(...)'!r}) makes "
                f"ours. Give it another name.",
                UserWarning,
                2,
            )
        else:
            Described.registry[cls.__name__] = cls

    def __repr__(self) -> str:
        parts: list[str] = []
        for i, f in enumerate(fields(self)):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            default = f.default if f.default_factory is MISSING else f.default_factory()
            if default is MISSING or value != default or type(value) is not type(default):
                text = show(value)
                parts.append(text if i == 0 and default is MISSING else f"{f.name}={text}")
        return f"{type(self).__name__}({', '.join(parts)})"


def is_ours(made: type) -> bool:
    """Whether this package has the class."""
    return made.__module__.partition(".")[0] == "compcomm"


def known(name: str) -> type[Described] | None:
    """The class of that name: ours, one defined in this program, or one of an installed package, which is then loaded.

    Raises:
        ValueError: the package that has it is broken.
    """
    if name not in Described.registry and (entry := installed.entries(_ours()).get(name)):
        made = installed.load(name, entry)
        if not issubclass(made, Described):
            raise ValueError(f"{name} of {installed.origin(entry)} is neither a Compressor nor a Reducer.")
        if name not in Described.registry:
            raise ValueError(f"{name} of {installed.origin(entry)} is an abstract class, or a private one.")
    return Described.registry.get(name)


def _ours() -> frozenset[str]:
    return frozenset(name for name, made in Described.registry.items() if is_ours(made))


def show(value: Any) -> str:
    """A value as ``parse`` reads it."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, dict):
        return "{" + ", ".join(f"{show(k)}: {show(v)}" for k, v in value.items()) + "}"
    return repr(value)


def parse(text: str) -> Any:
    """Makes the object that ``text`` describes. Nothing is executed: constructor calls, literals and names only.

    Raises:
        ValueError: what is not a description; an unknown name is answered with the nearest known one.
    """
    if not isinstance(text, str):
        raise TypeError(f'parse({text!r}): a text is needed, such as "TopK(ratio=0.01)".')
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        raise ValueError(f"parse({text!r}): not a description: {error.msg} at column {error.offset}.") from None
    except (UnicodeError, RecursionError, MemoryError) as error:
        raise ValueError(f"parse({text[:80]!r}): not a description: {error}.") from None
    try:
        made = _Reader(text).visit(tree.body)
    except TypeError as error:  # a list as the key of a dictionary
        raise ValueError(f"parse({text!r}): {error}.") from None
    if isinstance(made, type):
        raise ValueError(f"parse({text!r}): that is a name alone. Write the call: {made.__name__}(...).")
    return made


class _Reader(ast.NodeVisitor):
    def __init__(self, text: str) -> None:
        self.text = text

    def _known(self, name: str) -> Any:
        name = renamed_class(name) or name
        try:
            found = _VALUES.get(name) or known(name)
        except ValueError as error:
            raise ValueError(f"parse({self.text!r}): {error}") from error
        if found is not None:
            return found
        names = {*_VALUES, *Described.registry, *installed.entries(_ours())}
        lowered = {k.lower(): k for k in names}
        near = get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
        hint = f" Did you mean {lowered[near[0]]}?" if near else f" Known: {', '.join(sorted(names))}."
        raise ValueError(f"parse({self.text!r}): unknown name {name!r}.{hint}")

    def visit_Call(self, node: ast.Call) -> Any:
        if not isinstance(node.func, ast.Name | ast.Attribute):
            return self.generic_visit(node)
        name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        make = self._known(name)
        names = [k.arg for k in node.keywords]
        if not isinstance(make, type) or None in names or len(set(names)) < len(names):
            raise ValueError(f"parse({self.text!r}): {name!r} cannot be called like that.")
        args = [self.visit(a) for a in node.args]
        kwargs = {k.arg: self.visit(k.value) for k in node.keywords if k.arg}
        try:
            return make(*args, **kwargs)
        except TypeError as error:
            raise ValueError(f"parse({self.text!r}): {error}") from error

    def visit_Name(self, node: ast.Name) -> Any:
        return self._known(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        return self._known(node.attr)

    def visit_Constant(self, node: ast.Constant) -> Any:
        return node.value

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        value = self.visit(node.operand)
        if isinstance(node.op, ast.USub) and isinstance(value, int | float):
            return -value
        return self.generic_visit(node)

    def visit_Dict(self, node: ast.Dict) -> Any:
        if any(k is None for k in node.keys):
            return self.generic_visit(node)
        return {self.visit(k): self.visit(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}

    def visit_List(self, node: ast.List) -> Any:
        return [self.visit(e) for e in node.elts]

    def visit_Tuple(self, node: ast.Tuple) -> Any:
        return tuple(self.visit(e) for e in node.elts)

    def generic_visit(self, node: ast.AST) -> Any:
        part = ast.get_source_segment(self.text.strip(), node) or type(node).__name__
        raise ValueError(f"parse({self.text!r}): {part!r} is no constructor call, literal or known name.")
