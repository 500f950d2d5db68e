"""Compiles every Triton kernel for real GPUs, as far as machine code: needs Triton's compiler and no GPU.

    python -m tests.ops.interpreted.compile_all sm_90          # a line per kernel and form; fails at the first error

Runs in a process of its own, because whether kernels are interpreted is settled when they are imported.
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from compcomm.ops.triton import KERNELS
from compcomm.ops.triton.launch import compiling
from tests.ops.calls import calls

TYPES = {
    torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.float16: "*fp16",
    torch.uint8: "*u8", torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip


def compile_for(capability: int, only: set[str]) -> int:
    """The number of kernels compiled, each form once."""
    seen: set[object] = set()

    def instead(kernel: Any, args: tuple[Any, ...], constants: dict[str, Any], warps: int) -> None:
        signature, constexprs = {}, dict(constants)
        for name, a in zip(kernel.arg_names, args, strict=False):
            parameter = kernel.params[kernel.arg_names.index(name)]
            if a is None or (type(a) is int and a == 1 and not parameter.do_not_specialize):
                constexprs[name] = a  # as a launch has it
            elif isinstance(a, torch.Tensor):
                signature[name] = TYPES[a.dtype]
            else:
                integer = "i32" if -(2**31) <= a < 2**31 else "i64"
                signature[name] = {bool: "i1", int: integer, float: "fp32"}[type(a)]
        form = (kernel.__name__, kernel.fn.__module__, str(signature), str(constexprs), warps)
        if form in seen:
            return
        seen.add(form)
        source = ASTSource(kernel, {**signature, **dict.fromkeys(constexprs, "constexpr")}, constexprs)
        options = {"num_warps": warps, "enable_fp_fusion": False}
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        # Ours are never fused; "fma.rn.f64" would be a division's or a root's.
        fused = made.asm["ptx"].count("fma.rn.f32")
        print(
            f"{kernel.fn.__module__}.{kernel.__name__}: {made.metadata.shared} bytes shared, {fused} fused", flush=True
        )

    with compiling(instead):
        for op, make in calls():
            if op in KERNELS and (not only or op in only):
                print(op, flush=True)
                KERNELS[op](*make())
    return len(seen)


if __name__ == "__main__":
    found = compile_for(int(sys.argv[1].removeprefix("sm_")), set(sys.argv[2:]))
    print(f"{found} kernels compiled")
