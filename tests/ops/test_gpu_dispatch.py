"""Which kernel an op finds, what it says where there is none, and that every op has one for GPUs."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from compcomm.ops import current_backend, gpu
from tests.fresh import Programs
from tests.ops.calls import calls
from tests.ops.dense_case import Format
from tests.ops.sparse_case import using

OPS = torch.ops.compcomm
WITHOUT = {"randk_indices"}
"""Ops without a tensor among their arguments: they run on the host."""
RARE = {
    *("elias_encode", "elias_decode", "compact", "scatter", "count_encode", "count_decode", "gauss_encode"),
    *("gauss_decode", "magnitude_stats", "tail_stats", "ternary_encode", "ternary_decode", "two_means_encode"),
    "two_means_decode",
}
"""Ops of rare formats, without kernels for GPUs."""
SHARED = {"sm_90": 227 << 10, "sm_80": 163 << 10}
"""Bytes of shared memory that a program may have."""
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: nothing is interpreted")
ENCODE = (
    "import torch\nimport compcomm.ops as ops\n"
    "x, wire = torch.ones(600), torch.zeros(700, dtype=torch.uint8)\n"
    "table, status = torch.tensor([[0, -1, 600, 0, 0, 0, 0, 0]]), torch.zeros(2, dtype=torch.uint8)\n"
    "encode = lambda: torch.ops.compcomm.sign_encode(x, None, wire, table, status, 1.0, 1.0, 0, 512)\n"
)


def registered() -> list[str]:
    names = (name.partition("::") for name in torch._C._dispatch_get_all_op_names())
    return sorted({op.partition(".")[0] for space, _, op in names if space == "compcomm"} - WITHOUT)


def test_every_op_but_rare_ones_has_a_triton_kernel() -> None:
    """What a GPU does on torch operators is chosen, and not forgotten."""
    from compcomm.ops.triton import KERNELS

    assert set(registered()) - KERNELS.keys() == RARE
    assert sorted(KERNELS.keys() - set(registered())) == [], "kernels of ops that do not exist"


def test_every_op_has_a_call() -> None:
    """A kernel without one is neither compiled nor checked on a GPU."""
    assert sorted(set(registered()) - {op for op, _ in calls()}) == []


@pytest.mark.parametrize("op", sorted({op for op, _ in calls()}))
def test_calls_are_valid(op: str) -> None:
    for _, make in (call for call in calls() if call[0] == op):
        getattr(OPS, op)(*make())


def test_triton_alone_on_cpu_tensors_says_what_it_needs(programs: Programs) -> None:
    done = programs.run(ENCODE + "ops.backend('triton')\nencode()\n", warm=True, TRITON_INTERPRET="0")
    assert done.returncode != 0
    assert "compcomm.sign_encode: no kernel for cpu tensors" in done.stderr
    assert "TRITON_INTERPRET=1" in done.stderr and "compcomm.ops.backend('reference')" in done.stderr


def test_triton_alone_runs_interpreted(programs: Programs) -> None:
    """The other way round: with the variable set, CPU tensors are served."""
    done = programs.run(
        ENCODE + "with ops.backend('triton'): encode()\n"
        "assert ops.current_backend() != 'triton'\n"
        "assert wire[:4].view(torch.float32).item() == 1.0 and not x.any()\n",
        warm=True,
        TRITON_INTERPRET="1",
    )
    assert done.returncode == 0, done.stderr


def test_without_triton_it_says_how_to_get_it(programs: Programs) -> None:
    """CUDA tensors where Triton cannot be imported."""
    done = programs.run(
        "import sys\n"
        "for name in [n for n in sys.modules if n.partition('.')[0] == 'triton']: del sys.modules[name]\n"
        "sys.modules['triton'] = None\n"
        "from compcomm.ops import gpu\n"
        "print(gpu.find('natural_encode', 'native', 'cuda'))\n",
        warm=True,
    )
    assert "Triton cannot be imported" in done.stdout and "install triton" in done.stdout, done.stderr


def elsewhere(op: str, args: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """The op as the dispatcher calls it for tensors on ``device``, which these are said to be."""
    monkeypatch.setattr(gpu, "device_of", lambda _: torch.device(device))
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    getattr(OPS, op).default.redispatch(keys, *args)


@pytest.mark.parametrize("device", ["cuda", "xpu"])
def test_where_there_is_no_kernel_the_reference_runs_and_says_so_once(
    device: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make = next(make for op, make in calls() if op == "sign_encode")
    monkeypatch.setattr(gpu, "_triton", lambda: ({}, False, "Triton has no kernel for it"))
    monkeypatch.setattr(gpu, "_cuda", lambda: ({}, False, "CUDA C++ has no kernel for it"))
    gpu.say_once.cache_clear()
    due, found = make(), make()
    with using("reference"):
        OPS.sign_encode(*due)
    with caplog.at_level(logging.WARNING, "compcomm"):
        elsewhere("sign_encode", found, monkeypatch, device)
        elsewhere("sign_encode", make(), monkeypatch, device)
    assert all(torch.equal(a, b) for a, b in zip(due, found, strict=True) if isinstance(a, Tensor))
    (said,) = [r.getMessage() for r in caplog.records]
    assert f"sign_encode has no kernel for {device} tensors" in said and "torch operators" in said


def test_what_goes_bit_by_bit_is_done_on_copies_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elias codes: their reference is a loop over bits."""
    for op in ("elias_encode", "elias_decode"):
        make = next(make for name, make in calls() if name == op)
        due, found = make(), make()
        getattr(OPS, op)(*due)
        elsewhere(op, found, monkeypatch, "cuda")
        pairs = [(a, b) for a, b in zip(due, found, strict=True) if isinstance(a, Tensor)]
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)
        assert any(not torch.equal(a, b) for a, b in zip(found, make(), strict=True) if isinstance(a, Tensor))


def test_what_the_reference_cannot_do_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    make = next(make for op, make in calls() if op == "sign_encode")

    def refuses(*_: Any) -> None:
        raise NotImplementedError("float64 is not there")

    with pytest.raises(RuntimeError, match=r"compcomm.sign_encode: no kernel for xpu tensors .*float64 is not there"):
        monkeypatch.setattr(gpu, "device_of", lambda _: torch.device("xpu"))
        gpu.run("sign_encode", "native", refuses, make())


def test_wrong_arguments_are_refused_there_too(monkeypatch: pytest.MonkeyPatch) -> None:
    x, *rest = next(make for op, make in calls() if op == "sign_encode")()
    with pytest.raises(TypeError, match=r"compcomm.sign_encode: x is torch.float64"):
        elsewhere("sign_encode", (x.double(), *rest), monkeypatch, "xpu")


def test_meta_tensors_are_not_computed_on() -> None:
    """They go to the fake, as torch.compile's do: no kernel is looked for, and nothing is checked."""
    x, u8 = torch.empty(600, device="meta"), torch.uint8
    wire, status = torch.empty(92, dtype=u8, device="meta"), torch.empty(2, dtype=u8, device="meta")
    table = torch.tensor([[0, -1, 600, 0, 0, 0, 0, 0]])
    assert OPS.sign_encode(x, None, wire, table, status, 1.0, 1.0, 0, 512) is None


def test_the_backend_of_a_device() -> None:
    before = current_backend("cpu"), current_backend("cuda")
    with using("reference"):
        assert current_backend("cuda") == current_backend("cpu") == "reference"
    assert (current_backend("cpu"), current_backend("cuda")) == before


@pytest.mark.slow
@no_gpu
@pytest.mark.parametrize("op", ["sign_encode", "qsgd_decode", "topk_encode", "axpby"])
def test_schemas_of_interpreted_kernels(op: str) -> None:
    """They tell the truth about what these kernels write, as they do of the reference's."""
    make = next(make for name, make in calls() if name == op)
    with using("triton"):
        torch.library.opcheck(getattr(OPS, op).default, make(), test_utils="test_schema")


def test_a_compiled_step_in_one_graph() -> None:
    """torch.compile sees through the calls: one graph, whose numbers are those of the step itself."""
    n, form = 3000, Format("sign")
    table = torch.tensor([[0, 0, n, 0, 0, 5, 0, 0]])

    def step(x: Tensor, gradient: Tensor, wire: Tensor, status: Tensor, skip: Tensor, out: Tensor) -> Tensor:
        OPS.sign_encode(x, gradient * 2, wire, table, status, 1.0, 1.0, 0, 512)
        OPS.sign_decode(wire.unsqueeze(0), table, skip, out, 1.0, False, 512)
        return out * 0.1 + x

    def tensors() -> list[Tensor]:
        gradient = torch.randn(n, generator=torch.Generator().manual_seed(0))
        bytes_ = [torch.zeros(size, dtype=torch.uint8) for size in (form.section(n), 2, 1)]
        return [torch.zeros(n), gradient, *bytes_, torch.zeros(n)]

    plain, compiled = tensors(), tensors()
    expected, found = step(*plain), torch.compile(step, fullgraph=True, backend="aot_eager")(*compiled)
    assert torch.equal(expected, found)
    assert all(torch.equal(a, b) for a, b in zip(plain, compiled, strict=True))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("architecture", "ops"),
    [
        ("sm_90", ("sign_encode", "topk_decode")),
        pytest.param("sm_90", (), marks=pytest.mark.full),
        pytest.param("sm_80", (), marks=pytest.mark.full),
    ],
)
def test_kernels_compile(architecture: str, ops: tuple[str, ...], programs: Programs) -> None:
    """To machine code, by Triton's own compiler, which needs no GPU: no product is fused into a sum, which would change
    its bits, and the shared memory that a program wants is there. No ``ops``: all of them."""
    code = "import runpy; runpy.run_module('tests.ops.interpreted.compile_all', run_name='__main__')"
    done = programs.run(code, architecture, *ops, timeout=1100)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    lines = done.stdout.splitlines()
    assert int(lines[-1].partition(" ")[0]) > 0
    made = [re.fullmatch(r"(\S+): (\d+) bytes shared, (\d+) fused", line) for line in lines]
    found = [(m[1], int(m[2]), int(m[3])) for m in made if m]
    assert [name for name, _, fused in found if fused] == []
    assert [name for name, shared, _ in found if shared > SHARED[architecture]] == []
    assert {line for line in lines if line.isidentifier()} == (
        set(ops) or {op for op, _ in calls()} & set(registered()) - RARE
    )
