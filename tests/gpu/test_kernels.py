"""Every op on CUDA tensors answers to the reference on the CPU, to the bit, whichever backend serves it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compcomm.ops import backend, gpu, native
from tests.gpu import device
from tests.gpu.device import OPS
from tests.ops.dense_case import Format
from tests.ops.interpreted.agreement import SIZES
from tests.ops.sparse_case import using

BACKENDS = ("triton", "cuda")
CPU = native.isas()[-1] if native.available() else "reference"
"""What the CPU answers with at full size: its kernels, which other tests hold to the reference."""
FULL, BEYOND = 1 << 27, 1 << 31


def served(kind: str, op: str) -> None:
    """Skips the test where this backend has no kernel of its own for the op, by design. That Triton is missing, or has
    kernels that do not serve this device, is a failure; CUDA kernels may not have been built."""
    found = gpu.find(op, kind, device.DEVICE.type)
    if isinstance(found, str):
        assert kind == "cuda" or "Triton has no kernel for it" in found, found
        pytest.skip(found)


def held(kind: str, op: str, args: tuple[Any, ...], cpu: str) -> None:
    """The call on the device and on the CPU: equal, and nothing around its tensors touched."""
    placed, expected = device.place(op, args), device.copied(args)
    with backend("reference") if cpu == "reference" else using(cpu):
        getattr(OPS, op)(*expected)
    with backend(kind):
        getattr(OPS, op)(*placed.args)
    device.agree(op, placed.args, expected)
    assert placed.untouched(), "the kernel wrote outside of its tensors"


@pytest.mark.parametrize("op", device.names())
@pytest.mark.parametrize("kind", BACKENDS)
def test_every_call_equals_the_reference(kind: str, op: str) -> None:
    """What must be written is poisoned before, and so is the memory around every tensor; that stays as it is."""
    served(kind, op)
    for _, make in device.of(op):
        held(kind, op, device.poison(op, make()), "reference")


def large(n: int, seed: int = 0) -> Tensor:
    """On the CPU, with numbers of every size, zeros, and a few that are not finite."""
    g = torch.Generator(device.DEVICE).manual_seed(seed)
    x = torch.randn(n, generator=g, device=device.DEVICE)
    x *= torch.exp2(torch.randint(-20, 20, (n,), generator=g, device=device.DEVICE, dtype=torch.float32))
    x[::65_537] = 0
    x[n // 3], x[n // 2] = torch.inf, torch.nan
    return x.cpu()


def headline(n: int) -> dict[str, tuple[str, int, tuple[Any, ...]]]:
    """(op, bytes of the message, the arguments after the shared ones) of a row of n elements; 1 % is kept."""
    k, ones = n // 100, torch.ones(1)
    dense = {bits: 4 * -(-n // 512) + -(-n * bits // 32) * 4 for bits in (1, 4)}
    sparse = 4 * -(-n // 65536) + -(-k // 2) * 4 + 4 * k
    return {
        "4 bits, nearest": ("qsgd_encode", dense[4], (ones, 4, 7, False, False, 512, 1, 0)),
        "4 bits, stochastic": ("qsgd_encode", dense[4], (ones, 4, 7, False, True, 512, 1, 0)),
        "sign": ("sign_encode", dense[1], (0, 512)),
        "top-k": ("topk_encode", sparse, (torch.zeros(1),)),
        "sampled top-k": ("topk_sampled_encode", sparse, (1, 0)),
        "Hadamard": ("hadamard_forward", 4 * n, (1 << 15, 1)),
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", list(headline(FULL)))
@pytest.mark.parametrize("kind", BACKENDS)
def test_at_full_size(kind: str, name: str) -> None:
    op, nbytes, tail = headline(FULL)[name]
    served(kind, op)
    table = torch.tensor([[0, 0, FULL, 0, 0, 0x123456789ABCDEF, FULL // 100, 0]])
    wire = torch.full((nbytes,), device.POISON, dtype=torch.uint8)
    args = (large(FULL) * 0.1, large(FULL, 1), wire, table, torch.zeros(2, dtype=torch.uint8), 0.9, 1.5, *tail)
    held(kind, op, args, CPU)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["4 bits, nearest", "sign", "top-k"])
@pytest.mark.parametrize("kind", BACKENDS)
def test_eight_messages_of_full_size(kind: str, name: str) -> None:
    op, nbytes, tail = headline(FULL)[name]
    decode = op.replace("encode", "decode")
    served(kind, decode)
    rest = {"qsgd_decode": (4, 7, 512), "sign_decode": (512,), "topk_decode": ()}[decode]
    table = torch.tensor([[0, 0, FULL, 0, 0, 5, FULL // 100, 0]])
    wires, x, add = torch.empty(8, nbytes, dtype=torch.uint8), large(FULL) * 0.1, large(FULL, 1)
    with using(CPU):
        for message in wires:
            getattr(OPS, op)(x, add, message, table, torch.zeros(2, dtype=torch.uint8), 1.0, 1.0, *tail)
    args = (wires, table, torch.zeros(1, dtype=torch.uint8), add.nan_to_num(0.0, 0.0, 0.0), 0.125, True, *rest)
    held(kind, decode, args, CPU)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", BACKENDS)
def test_offsets_beyond_two_to_the_31(kind: str) -> None:
    """A row longer than 2^31 elements, and a short one behind it in x and in the message, in bf16; the ends are those
    of the same numbers in rows of their own."""
    served(kind, "sign_encode")
    n, tail = BEYOND + 4099, 512 * 9
    if torch.cuda.mem_get_info()[0] < 16 << 30:
        pytest.skip("needs 16 GiB of free GPU memory")
    section = Format("sign").section
    first = (n - 1) // 512 * 512 - tail  # from here on the long row's end is looked at
    x = torch.empty(n + 600, dtype=torch.bfloat16, device=device.DEVICE).normal_()
    gap = BEYOND
    wire = torch.full((section(n) + gap + section(600),), device.POISON, dtype=torch.uint8, device=device.DEVICE)
    table = torch.tensor([[0, -1, n, 0, 0, 1, 0, 0], [n, -1, 600, section(n) + gap, 0, 2, 0, 1]])
    end, short = x[first:n].cpu().clone(), x[n:].cpu().clone()
    with backend(kind):
        OPS.sign_encode(x, None, wire, table, torch.zeros(3, dtype=torch.uint8, device=x.device), 1.0, 1.0, 0, 512)
    for own, at, scales, bits in (
        (end, first, first // 512 * 4, -(-n // 512) * 4 + first // 8),
        (short, n, section(n) + gap, section(n) + gap + 8),
    ):
        line = torch.tensor([[0, -1, own.numel(), 0, 0, 0, 0, 0]])
        due = torch.zeros(section(own.numel()), dtype=torch.uint8)
        with backend("reference"):
            OPS.sign_encode(own, None, due, line, torch.zeros(2, dtype=torch.uint8), 1.0, 1.0, 0, 512)
        blocks = -(-own.numel() // 512)
        assert device.same(x[at : at + own.numel()].cpu(), own)
        assert torch.equal(wire[scales : scales + 4 * blocks].cpu(), due[: 4 * blocks])
        assert torch.equal(wire[bits : bits + due.numel() - 4 * blocks].cpu(), due[4 * blocks :])
    assert bool((wire[section(n) : section(n) + gap] == device.POISON).all())


@pytest.mark.parametrize("op", device.names())
@pytest.mark.parametrize("kind", BACKENDS)
def test_no_call_waits_for_the_device(kind: str, op: str) -> None:
    """After a first one of the same shapes, which compiles and copies the table."""
    served(kind, op)
    for _, make in device.of(op):
        placed = device.place(op, make())
        with backend(kind):
            getattr(OPS, op)(*placed.args)
            torch.cuda.synchronize()
            with device.unwaiting():
                getattr(OPS, op)(*placed.args)


@pytest.mark.parametrize("op", device.names())
def test_opcheck(op: str) -> None:
    for _, make in device.of(op)[:1]:
        torch.library.opcheck(getattr(OPS, op).default, device.place(op, make()).args)


@pytest.mark.parametrize("name", ["4 bits, nearest", "sign", "top-k"])
@pytest.mark.parametrize("kind", BACKENDS)
def test_a_graph_of_encode_and_decode_replays(kind: str, name: str) -> None:
    """Captured once, replayed on other gradients: as the CPU finds it, step by step."""
    n = 100_000
    op, nbytes, tail = headline(n)[name]
    decode = op.replace("encode", "decode")
    served(kind, op)
    served(kind, decode)
    rest = {"qsgd_decode": (4, 7, 512), "sign_decode": (512,), "topk_decode": ()}[decode]
    table = torch.tensor([[0, 0, n, 0, 0, 5, n // 100, 0]])

    def tensors() -> list[Tensor]:  # x, gradient, message, status, skip, mean
        u8 = torch.uint8
        return [
            torch.zeros(n), torch.zeros(n), torch.zeros(nbytes, dtype=u8), torch.zeros(2, dtype=u8),
            torch.zeros(1, dtype=u8), torch.zeros(n),
        ]  # fmt: skip

    def step(t: list[Tensor], own: tuple[Any, ...]) -> None:
        x, add, wire, status, skip, out = t
        getattr(OPS, op)(x, add, wire, table, status, 1.0, 1.0, *own)
        getattr(OPS, decode)(wire.unsqueeze(0), table, skip, out, 0.5, False, *rest)

    theirs, ours = tensors(), [t.to(device.DEVICE) for t in tensors()]
    moved = tuple(a.to(device.DEVICE) if isinstance(a, Tensor) and name == "top-k" else a for a in tail)
    with backend(kind):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                step(ours, moved)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step(ours, moved)
        for t in (*ours, *(a for a in moved if isinstance(a, Tensor) and a.is_cuda)):
            t.zero_()
    for seed in range(3):
        gradient = torch.randn(n, generator=torch.Generator().manual_seed(seed))
        theirs[1].copy_(gradient)
        ours[1].copy_(gradient)
        with backend("reference"):
            step(theirs, tail)
        graph.replay()
        torch.cuda.synchronize()
        for a, b in zip(ours, theirs, strict=True):
            assert device.same(a.cpu(), b), (name, seed)


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:TensorFloat32")  # there is no product here
def test_a_compiled_step_in_one_graph() -> None:
    """torch.compile sees through every call: no break, the same numbers."""
    n = 5000
    table, gain = torch.tensor([[0, 0, n, 0, 0, 5, 50, 0]]), torch.ones(1)
    nbytes = headline(n)["4 bits, nearest"][1]

    def step(x: Tensor, gradient: Tensor, wire: Tensor, status: Tensor, skip: Tensor, out: Tensor) -> Tensor:
        OPS.qsgd_encode(x, gradient * 2, wire, table, status, 1.0, 1.0, gain, 4, 7, False, False, 512, 1, 0)
        OPS.qsgd_decode(wire.unsqueeze(0), table, skip, out, 1.0, False, 4, 7, 512)
        return out * 0.1

    def tensors(where: str) -> list[Tensor]:
        x, g = torch.zeros(n), torch.randn(n, generator=torch.Generator().manual_seed(0))
        u8 = torch.uint8
        others = [torch.zeros(nbytes, dtype=u8), torch.zeros(2, dtype=u8), torch.zeros(1, dtype=u8), torch.zeros(n)]
        return [t.to(where, copy=True) for t in (x, g, *others)]

    theirs, ours = tensors("cpu"), tensors(str(device.DEVICE))
    with backend("reference"):
        expected = step(*theirs)
    found = torch.compile(step, fullgraph=True)(*ours)
    assert device.same(found.cpu(), expected)
    for a, b in zip(ours, theirs, strict=True):
        assert device.same(a.cpu(), b)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="compute-sanitizer is not on PATH")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_the_sanitizer_finds_nothing(tool: str) -> None:
    script = (
        "from tests.gpu import device\n"
        "from tests.ops.calls import calls\n"
        "import compcomm, torch\n"
        "from compcomm.ops import gpu\n"
        "for op, make in calls():\n"
        "    getattr(device.OPS, op)(*device.place(op, make()).args)\n"
        "torch.cuda.synchronize()\n"
    )
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", script]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # every tensor has its own bounds
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def test_one_launch_serves_many_rows() -> None:
    """The sizes of the interpreted tests, all rows at once, against one row at a time."""
    served("triton", "sign_encode")
    form = Format("sign")
    g = torch.Generator().manual_seed(0)
    xs = [torch.randn(n, generator=g) for n in SIZES]
    lines, at, byte = [], 0, 0
    for i, x in enumerate(xs):
        lines.append([at, -1, x.numel(), byte, 0, 0, 0, i])
        at, byte = at + x.numel(), byte + form.section(x.numel())
    whole = torch.cat(xs).to(device.DEVICE)
    wire = torch.zeros(byte, dtype=torch.uint8, device=device.DEVICE)
    status = torch.zeros(1 + len(xs), dtype=torch.uint8, device=device.DEVICE)
    with backend("triton"):
        OPS.sign_encode(whole, None, wire, torch.tensor(lines), status, 1.0, 1.0, 0, 512)
    for (start, _, n, begin, *_), x in zip(lines, xs, strict=True):
        due = torch.zeros(form.section(n), dtype=torch.uint8)
        with backend("reference"):
            line, own = torch.tensor([[0, -1, n, 0, 0, 0, 0, 0]]), torch.zeros(2, dtype=torch.uint8)
            OPS.sign_encode(x, None, due, line, own, 1.0, 1.0, 0, 512)
        assert torch.equal(wire[begin : begin + due.numel()].cpu(), due)
        assert device.same(whole[start : start + n].cpu(), x)
