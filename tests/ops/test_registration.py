"""The ops as torch sees them (schemas, fakes, compilation), and the library as the loader finds it."""

from __future__ import annotations

import pytest
import torch

from compcomm.ops import native
from tests.fresh import Programs
from tests.ops.calls import calls
from tests.ops.sparse_case import OPS, using

LAST = (*native.isas()[-1:], "reference")
ALL = ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic")
CHECKED = {"sign_encode", "adam", "topk_decode"}
"""Also whether the graph that torch.compile makes of a call, and autograd's part of it, is right: that is the same for
all, and takes its time."""


@pytest.mark.parametrize("op", sorted({op for op, _ in calls()}))
def test_opcheck(op: str) -> None:
    """Schemas say what is written, and fakes take what the op takes; on kernels, and on the reference."""
    make = next(make for name, make in calls() if name == op)
    for number, backend in enumerate(LAST):
        utils = ALL if op in CHECKED and number == 0 else ALL[:2]
        with using(backend):
            torch.library.opcheck(getattr(OPS, op).default, make(), test_utils=utils)


@pytest.mark.slow
def test_without_a_library_the_reference_works_and_says_so_once(programs: Programs) -> None:
    done = programs.run(
        "import torch\nimport compcomm.ops as ops\n"
        "assert ops.current_backend() == 'reference' and ops.native.isa() == 'none'\n"
        "x, wire = torch.ones(3), torch.zeros(12, dtype=torch.uint8)\n"
        "table, status = torch.tensor([[0, -1, 3, 0, 0, 0, 0, 0]]), torch.zeros(2, dtype=torch.uint8)\n"
        "torch.ops.compcomm.dense_encode(x, None, wire, table, status, 1.0, 1.0)\n"
        "assert wire.view(torch.float32).tolist() == [1, 1, 1]\n"
        "try: ops.backend('native')\n"
        "except RuntimeError as error: print(error)\n",
        COMPCOMM_LIBRARY="/nowhere/libcompcomm.so",
        COMPCOMM_CPU="",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no native library") == 1 and "pip install" in done.stderr
    assert "not installed" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not native.available(), reason="no native library")
def test_the_environment_chooses(programs: Programs) -> None:
    show = "import compcomm.ops as ops; print(ops.native.isa(), ops.current_backend())"
    done = programs.run(show, COMPCOMM_CPU="baseline", COMPCOMM_BACKEND="reference")
    assert done.stdout.split() == ["baseline", "reference"], done.stderr
    done = programs.run("import compcomm.ops", COMPCOMM_CPU="quantum")
    assert done.returncode != 0 and "COMPCOMM_CPU='quantum': this machine has baseline" in done.stderr
