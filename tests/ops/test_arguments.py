"""Wrong arguments give an error that names the call, the value and the cure; never a crash, never a stray write."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from compcomm.ops import backend, current_backend, native
from tests.ops.dense_case import OPS, Form, Format, case
from tests.ops.formats import discovered
from tests.ops.sparse_case import using

BACKENDS = ("reference", *native.isas()[-1:])
FORMS = [
    *(Format("dense"), Format("cast"), Format("sign"), Format("qsgd"), Format("qsgd", bits=3, stochastic=True)),
    *{form.name: form for form in discovered()}.values(),  # one of each family
]
PARAMETERS: dict[str, list[tuple[Any, str]]] = {
    "gain": [(torch.ones(3), "gain has 3 elements"), (torch.ones(2, dtype=torch.float64), "gain is torch.float64")],
    "block": [(0, "multiple of 16"), (40, "multiple of 16")],
    "bits": [(9, "to 8 bits")],
    "levels": [(128, "do not fit"), (0, "do not fit")],
    "kind": [(3, "kind=3")],
}
"""Values that no format takes, and what is said of them."""


class Call(NamedTuple):
    """An op and its arguments by name."""

    name: str
    args: dict[str, Any]

    def run(self, **changes: Any) -> None:
        getattr(OPS, self.name)(*(self.args | changes).values())

    def refuses(self, reason: str, **changes: Any) -> None:
        with pytest.raises((TypeError, ValueError), match=f"compcomm.{self.name}: .*{reason}"):
            self.run(**changes)

    def refuses_rows(self, *changes: tuple[int, int, str]) -> None:
        """(column, value, reason) in the second of two rows."""
        for column, value, reason in changes:
            table = self.args["table"].clone()
            table[1, column] = value
            self.refuses(f"table row 1 .*{reason}", table=table)

    def refuses_parameters(self) -> None:
        for name, usual in self.args.items():
            for value, reason in PARAMETERS.get(name, []):
                if isinstance(value, Tensor) == isinstance(usual, Tensor):
                    self.refuses(reason, **{name: value})

    def refuses_types(self, *names: str) -> None:
        for name in names:
            good = self.args[name]
            for value in (good.to(torch.float64), good.repeat_interleave(2, -1)[..., ::2], good.reshape(1, 1, -1)):
                self.refuses("", **{name: value})


def call(name: str, *args: Any) -> Call:
    return Call(name, dict(zip((a.name for a in getattr(OPS, name).default._schema.arguments), args, strict=True)))


def encode_call(form: Form) -> Call:
    c = case(form, sizes=(40, 600))
    wire, status = torch.zeros(c.nbytes, dtype=torch.uint8), torch.zeros(6, dtype=torch.uint8)
    return call(f"{form.name}_encode", c.x, c.add, wire, c.table, status, 1.0, 1.0, *form.encode_tail(c.gain, 0, 0))


def decode_call(form: Form) -> Call:
    c = case(form, sizes=(40, 600))
    wires, skip = torch.zeros(2, c.nbytes, dtype=torch.uint8), torch.zeros(5, dtype=torch.uint8)
    return call(f"{form.name}_decode", wires, c.table, skip, torch.zeros_like(c.x), 1.0, True, *form.decode_tail())


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_encode(form: Form, name: str) -> None:
    call = encode_call(form)
    wire, table = call.args["wire"], call.args["table"]
    end = int(table[-1, 3]) + form.section(600)
    nothing = table.clone()
    nothing[0, :2] = -1
    with using(name):
        call.run(wire=wire[:end])
        call.refuses("ends outside the wire", wire=wire[: end - 1])
        call.refuses("no input", table=nothing)
        call.refuses_types("x", "add", "wire", "status", "table")
        call.refuses_rows((0, 10**6, "outside x"), (0, 2**62, "outside x"), (1, 10**6, "outside add"), (2, -1, "numel"))
        call.refuses_rows((2, 2**61, "numel"), (3, -4, "wire"), (3, 10**7, "wire"), (7, -1, "index"), (7, 5, "index"))
        call.refuses_parameters()


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_decode(form: Form, name: str) -> None:
    call = decode_call(form)
    wires = call.args["wires"]
    end = int(call.args["table"][-1, 3]) + form.section(600)
    with using(name):
        call.refuses("ends outside messages", wires=wires[:, : end - 1])
        call.refuses("at least one message", wires=wires[:0])
        call.refuses_types("wires", "table", "skip", "out")
        call.refuses_rows((0, 10**6, "outside out"), (0, -2, "outside out"), (2, -1, "numel"))
        call.refuses_rows((3, 10**7, "messages"), (7, 5, "index"))
        call.refuses_parameters()


@pytest.mark.skipif(not native.available(), reason="no native library")
@given(st.integers(0, len(FORMS) - 1), st.integers(0, 1), st.integers(0, 7), st.integers(-(2**63), 2**63 - 1))
def test_any_table_is_safe(form: int, row: int, column: int, value: int) -> None:
    """One wild number in the table: the call works or explains itself, and the bytes around its buffers stay."""
    for call, written in ((encode_call(FORMS[form]), ("x", "wire")), (decode_call(FORMS[form]), ("out",))):
        table, inside = call.args["table"].clone(), [call.args[name] for name in written]
        table[row, column] = value
        around = [torch.full((t.numel() + 128,), 0x5A).to(t.dtype) for t in inside]
        views = {name: a[64:-64].copy_(t) for name, a, t in zip(written, around, inside, strict=True)}
        with using(native.isas()[-1]):
            try:
                call.run(table=table, **views)
            except ValueError as error:
                assert f"table row {row}" in str(error)
            except RuntimeError as error:  # zeros are no code of variable length
                assert re.search("decode.*corrupt", str(error))
        assert all((a[:64] == 0x5A).all() and (a[-64:] == 0x5A).all() for a in around)


def test_backend_nests_and_refuses() -> None:
    before = current_backend()
    with backend("reference"):
        assert current_backend() == "reference"
        if native.available():
            with backend("native"):
                assert current_backend() == "native"
        assert current_backend() == "reference"
    assert current_backend() == before
    with pytest.raises(ValueError, match="'native', 'triton', 'cuda', 'reference'"):
        backend("numpy")
    with pytest.raises(ValueError, match="this machine has"):
        native.set_isa("sse9")
