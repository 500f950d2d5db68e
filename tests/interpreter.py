"""Triton's interpreter, asked the same question once: half of a small kernel's time went into what to patch.

For each launch, and for each call of a device function within one, the interpreter searches ``triton.language`` for
its builtins and puts its own in their place; for each operation it builds the table of numpy's types anew, and the type
and the shape of what comes out. The builtins of a module do not change, within a launch they are in place already, the
table is a table, and a type is a type. And each sum,
difference and product of integers is made in 64 bits as well and compared with its type's limits, for an assertion that
only a debug run has. What a kernel computes is computed as before: nothing here stands in for an operation.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any


def hasten() -> None:
    """Where Triton is there and has the interpreter we know; a second call changes nothing."""
    try:
        from triton.runtime import interpreter
    except ImportError:
        return
    known = (
        "_patch_lang", "_patch_builtin", "_patch_attr", "_get_np_dtype", "_LangPatchScope", "tl", "interpreter_builder",
        "interpreter_semantic",
    )  # fmt: skip
    if hasattr(interpreter, "hastened") or not all(hasattr(interpreter, name) for name in known):
        return
    tl, patch_lang, np_dtype = interpreter.tl, interpreter._patch_lang, interpreter._get_np_dtype
    patched: set[ModuleType] = set()

    @cache
    def builtins(package: Any) -> tuple[str, ...]:
        return tuple(name for name, member in inspect.getmembers(package) if tl.core.is_builtin(member))

    def patch_builtin(package: Any, builder: Any, scope: Any) -> None:
        for name in builtins(package):
            member = getattr(package, name)
            if tl.core.is_builtin(member):  # not yet another's in its place
                interpreter._patch_attr(package, name, member, builder, scope)

    @cache
    def languages(function: Any) -> frozenset[ModuleType]:
        return frozenset(v for v in function.__globals__.values() if inspect.ismodule(v) and v in (tl, tl.core))

    class Scope(interpreter._LangPatchScope):
        def restore(self) -> None:
            super().restore()
            patched.clear()

    def patch(function: Any) -> Any:
        wanted = languages(function)
        if patched and wanted <= patched:  # a device function, called by a kernel that runs
            return interpreter._LangPatchScope()
        outermost = not patched
        found = patch_lang(function)
        patched.update(wanted)
        if outermost:
            found.__class__ = Scope
        return found

    block_type, tensor = tl.block_type, tl.tensor
    blocks: dict[tuple[Any, ...], Any] = {}
    semantic = type(interpreter.interpreter_semantic)
    make_tensor, make_alike, make_ir = tensor.__init__, semantic.broadcast_impl_value, block_type.to_ir

    def with_element_ty(self: Any, scalar: Any) -> Any:
        key = (scalar.name, *self.shape)
        if key not in blocks:
            blocks[key] = block_type(scalar, self.shape)
        return blocks[key]

    def to_ir(self: Any, builder: Any) -> Any:
        return self if builder is interpreter.interpreter_builder else make_ir(self, builder)

    def init(self: Any, handle: Any, kind: Any) -> None:
        made = kind.__dict__.get("made")
        if made is None:
            make_tensor(self, handle, kind)
            kind.made = self.shape, self.numel
            return
        self.handle, self.type, self.dtype = handle, kind, kind.scalar
        self.shape, self.numel = made

    def broadcast(self: Any, lhs: Any, rhs: Any) -> tuple[Any, Any]:
        a, b = lhs.type, rhs.type
        if a is b or (a.is_block() and b.is_block() and a.shape.values == b.shape.values):
            return lhs, rhs
        return make_alike(self, lhs, rhs)

    @cache
    def of_scalar(name: str) -> Any:
        return np_dtype(interpreter.tl.dtype(name))

    def get_np_dtype(kind: Any) -> Any:
        scalar = kind.scalar
        return np_dtype(kind) if isinstance(scalar, tl.pointer_type) else of_scalar(scalar.name)

    block_type.with_element_ty, block_type.to_ir = with_element_ty, to_ir
    tensor.__init__, semantic.broadcast_impl_value = init, broadcast
    options = interpreter.interpreter_builder.options
    if not options.debug and hasattr(options, "sanitize_overflow"):
        interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)
    interpreter._patch_builtin, interpreter._patch_lang = patch_builtin, patch
    interpreter._get_np_dtype, interpreter.hastened = get_np_dtype, True
