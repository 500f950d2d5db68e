"""The ops as torch sees them (schemas, fakes, compilation), and the library as the loader finds it."""

from __future__ import annotations

import pytest
import torch

from compcomm.ops import native
from tests.fresh import Programs
from tests.ops.dense_case import Format, case
from tests.ops.sparse_case import using

OPS = torch.ops.compcomm
FORMS = [Format("dense"), Format("cast"), Format("sign"), Format("qsgd", stochastic=True)]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("backend", ["reference", *native.isas()[-1:]])
def test_opcheck(form: Format, backend: str) -> None:
    c = case(form, sizes=(40, 600))
    wire, status = torch.zeros(c.nbytes, dtype=torch.uint8), torch.zeros(6, dtype=torch.uint8)
    tail = (1.0, 1.0, *form.encode_tail(c.gain, 1, 0))
    skip, out = torch.zeros(5, dtype=torch.uint8), torch.zeros_like(c.x)
    with using(backend):
        encode, decode = getattr(OPS, f"{form.name}_encode").default, getattr(OPS, f"{form.name}_decode").default
        torch.library.opcheck(encode, (c.x, c.add, wire, c.table, status, *tail))
        torch.library.opcheck(encode, (c.x, None, wire, c.table, status, *tail))
        torch.library.opcheck(decode, (wire.unsqueeze(0), c.table, skip, out, 0.5, True, *form.decode_tail()))


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


@pytest.mark.skipif(not native.available(), reason="no native library")
def test_the_environment_chooses(programs: Programs) -> None:
    show = "import compcomm.ops as ops; print(ops.native.isa(), ops.current_backend())"
    done = programs.run(show, COMPCOMM_CPU="baseline", COMPCOMM_BACKEND="reference")
    assert done.stdout.split() == ["baseline", "reference"], done.stderr
    done = programs.run("import compcomm.ops", COMPCOMM_CPU="quantum")
    assert done.returncode != 0 and "COMPCOMM_CPU='quantum': this machine has baseline" in done.stderr
