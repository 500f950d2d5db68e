"""The owner's step in one op gives what the decoder and the encoder give, to the bit, on every backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from compcomm.ops import current_backend, native
from tests.ops.calls.reencode import reencode as arguments
from tests.ops.dense_case import OPS, Case, Format, case, encode, gaps, same
from tests.ops.interpreted.agreement import backends, in_cuda
from tests.ops.sparse_case import using

SIZES = (0, 1, 17, 512, 513, 1100)
FORMS = [
    Format("sign"),
    Format("sign", block=48, flag=True),
    Format("sign", block=1040),
    Format("qsgd"),
    Format("qsgd", bits=3, norm2=True, stochastic=True, block=48),
    Format("qsgd", bits=8, stochastic=True, block=1040),
]


def received(form: Format, c: Case, messages: int) -> tuple[Tensor, Tensor]:
    """Messages at odd addresses, and the table of their sections, which lie elsewhere than those of the answer."""
    table = c.table.clone()
    table[:, 3] += 4
    table[:, 4:6] = 99
    wires = torch.full((messages, c.nbytes + 9), 0x5A, dtype=torch.uint8)[:, 1:]
    for m in range(messages):
        wires[m, 4 : 4 + c.nbytes] = encode("reference", form, case(form, "normal", SIZES, seed=m), rank=m)["wire"]
    return wires, table


def step(
    backend: str, form: Format, c: Case, wires: Tensor, table: Tensor, x: Tensor | None, add_scale: float
) -> dict[str, Tensor]:
    """All that the op writes."""
    found = {
        "wire": torch.full((c.nbytes + 1,), 0xA5, dtype=torch.uint8)[1:],
        "status": torch.tensor([4, 0, 0, 0, 2, 0], dtype=torch.uint8),
    }
    if x is not None:
        found["x"] = x.clone()
    skip = torch.tensor([0, 0, 0, 1, 0], dtype=torch.uint8)
    with using(backend):
        getattr(OPS, f"{form.name}_reencode")(
            found.get("x"), wires, table, skip, found["wire"], c.table, found["status"], 0.3, add_scale,
            *form.encode_tail(c.gain, 3, 1),
        )  # fmt: skip
    return found


# Triton does it by the format's own two kernels, which have their tests, and is slow here.
@pytest.mark.parametrize(
    ("backend", "form"),
    [
        (backend, form)
        for form in FORMS
        for backend in (*backends(f"{form.name}_reencode", f"{form.name}_encode"), *["native"] * native.available())
        if backend != "triton" or form.block == 48
    ],
    ids=str,
)
def test_reencode(backend: str, form: Format) -> None:
    name = {"native": native.isa()}.get(backend, backend)
    for messages, kind, add_scale in ((1, "normal", 1.0), (3, "nonfinite", 1.3), (2, "negative zero", -0.5)):
        c = case(form, kind, SIZES)
        wires, table = received(form, c, messages)
        poisoned = c.add if kind == "nonfinite" else c.x
        for x in (poisoned, None) if backend != "triton" or messages == 3 else (poisoned,):
            expected = step("reference", form, c, wires, table, x, add_scale)
            found = step(name, form, c, wires, table, x, add_scale)
            for what, tensor in expected.items():
                assert same(found[what], tensor), (form, messages, kind, what)
    rows = c.table.tolist()
    outside = gaps([(r[3], form.section(r[2])) for r in rows], c.nbytes)
    assert (found["wire"][outside] == 0xA5).all()


@pytest.mark.parametrize("other", ["cuda"] if in_cuda() else [])
def test_a_residual_of_half_precision(other: str) -> None:
    form = Format("qsgd")
    c = case(form, "normal", SIZES)
    wires, table = received(form, c, 2)
    x = c.x.bfloat16()
    expected, found = (step(backend, form, c, wires, table, x, 1.0) for backend in ("reference", other))
    assert all(same(found[what], tensor) for what, tensor in expected.items())


def test_a_mean_that_is_not_finite_stays_out_of_the_residual() -> None:
    form = Format("sign")
    for backend in ("reference", *["cuda"] * bool(in_cuda())):
        c = case(form, "normal", (16,))
        wires, table = torch.zeros(1, c.nbytes, dtype=torch.uint8), c.table.clone()
        wires[0, int(table[0, 3]) :][:4] = torch.tensor([torch.inf]).view(torch.uint8)
        x, wire, status = c.x.clone(), torch.zeros(c.nbytes, dtype=torch.uint8), torch.zeros(6, dtype=torch.uint8)
        with using(backend):
            OPS.sign_reencode(
                x, wires, table, torch.zeros(5, dtype=torch.uint8), wire, c.table, status, 1.0, 1.0, 0, 512
            )
        assert torch.isfinite(x).all() and status[:2].tolist() == [1, 1]
        assert wire[4:8].view(torch.float32).isfinite().all()


@pytest.mark.parametrize("backend", ["reference", *["cuda"] * bool(in_cuda())])
@pytest.mark.parametrize(
    ("column", "value", "words"),
    [(2, 41, "same rows"), (3, 10**6, "outside the wire"), (0, 10**6, "outside x"), (7, 9, "index")],
)
def test_tables_that_do_not_fit_are_explained(backend: str, column: int, value: int, words: str) -> None:
    call: list[Any] = list(arguments(Format("sign"), True))
    call[5] = call[5].clone()
    call[5][1, column] = value
    with using(backend), pytest.raises(ValueError, match=words):
        OPS.sign_reencode(*call)
    assert current_backend() != "cuda"
