"""Wrong arguments give an error that names the call, the value and the cure; never a crash, never a stray write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from compcomm.ops import backend, current_backend, native
from tests.ops.dense_case import Format, case
from tests.ops.formats import Coded, discovered
from tests.ops.sparse_case import using

OPS = torch.ops.compcomm
BACKENDS = ("reference", *native.isas()[-1:])
FORMS = [
    *(Format("dense"), Format("cast"), Format("sign"), Format("qsgd"), Format("qsgd", bits=3, stochastic=True)),
    *{form.name: form for form in discovered()}.values(),  # one of each family
]


def encode_call(form: Format | Coded) -> dict[str, Any]:
    c = case(form, sizes=(40, 600))
    return {
        "op": getattr(OPS, f"{form.name}_encode"),
        "x": c.x,
        "add": c.add,
        "wire": torch.zeros(c.nbytes, dtype=torch.uint8),
        "table": c.table,
        "status": torch.zeros(6, dtype=torch.uint8),
        "tail": (1.0, 1.0, *form.encode_tail(c.gain, 0, 0)),
    }


def decode_call(form: Format | Coded) -> dict[str, Any]:
    c = case(form, sizes=(40, 600))
    return {
        "op": getattr(OPS, f"{form.name}_decode"),
        "wires": torch.zeros(2, c.nbytes, dtype=torch.uint8),
        "table": c.table,
        "skip": torch.zeros(5, dtype=torch.uint8),
        "out": torch.zeros_like(c.x),
        "tail": (1.0, True, *form.decode_tail()),
    }


def run(call: dict[str, Any], **changes: Any) -> None:
    op, *tensors, tail = {**call, **changes}.values()
    op(*tensors, *tail)


def changed(table: Tensor, row: int, column: int, value: int) -> Tensor:
    table = table.clone()
    table[row, column] = value
    return table


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("form", FORMS, ids=str)
class TestEncode:
    @pytest.mark.parametrize("tensor", ["x", "add", "wire", "status", "table"])
    def test_dtype_and_shape(self, form: Format | Coded, name: str, tensor: str) -> None:
        call = encode_call(form)
        good = call[tensor]
        bad = [good.to(torch.float64), good.repeat_interleave(2, -1)[..., ::2], good.reshape(1, 1, -1)]
        for value in bad:
            with using(name), pytest.raises((TypeError, ValueError), match=rf"compcomm.{form.name}_encode: {tensor} "):
                run(call, **{tensor: value})

    @pytest.mark.parametrize(
        ("column", "value", "reason"),
        [
            (0, 10**6, "outside x"),
            (0, 2**62, "outside x"),
            (1, 10**6, "outside add"),
            (2, -1, "numel"),
            (2, 2**61, "numel"),
            (3, -4, "wire"),
            (3, 10**7, "wire"),
            (7, -1, "index"),
            (7, 5, "index"),
        ],
    )
    def test_rows_outside(self, form: Format | Coded, name: str, column: int, value: int, reason: str) -> None:
        call = encode_call(form)
        with using(name), pytest.raises(ValueError, match=rf"compcomm.{form.name}_encode: table row 1 .*{reason}"):
            run(call, table=changed(call["table"], 1, column, value))

    def test_the_last_byte_must_fit(self, form: Format | Coded, name: str) -> None:
        call = encode_call(form)
        end = int(call["table"][-1, 3]) + form.section(600)
        with using(name):
            run(call, wire=call["wire"][:end])
            with pytest.raises(ValueError, match="ends outside the wire"):
                run(call, wire=call["wire"][: end - 1])

    def test_no_input(self, form: Format | Coded, name: str) -> None:
        call = encode_call(form)
        table = changed(changed(call["table"], 0, 0, -1), 0, 1, -1)
        with using(name), pytest.raises(ValueError, match="no input"):
            run(call, table=table)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("form", FORMS, ids=str)
class TestDecode:
    @pytest.mark.parametrize("tensor", ["wires", "table", "skip", "out"])
    def test_dtype_and_shape(self, form: Format | Coded, name: str, tensor: str) -> None:
        call = decode_call(form)
        good = call[tensor]
        for value in (good.to(torch.float64), good.reshape(1, 1, -1), good.repeat_interleave(2, -1)[..., ::2]):
            with using(name), pytest.raises((TypeError, ValueError), match=rf"compcomm.{form.name}_decode: "):
                run(call, **{tensor: value})

    def test_no_message(self, form: Format | Coded, name: str) -> None:
        call = decode_call(form)
        with using(name), pytest.raises(ValueError, match="at least one message"):
            run(call, wires=call["wires"][:0])

    @pytest.mark.parametrize(
        ("column", "value", "reason"),
        [
            (0, 10**6, "outside out"),
            (0, -2, "outside out"),
            (2, -1, "numel"),
            (3, 10**7, "messages"),
            (7, 5, "index"),
        ],
    )
    def test_rows_outside(self, form: Format | Coded, name: str, column: int, value: int, reason: str) -> None:
        call = decode_call(form)
        with using(name), pytest.raises(ValueError, match=rf"compcomm.{form.name}_decode: table row 1 .*{reason}"):
            run(call, table=changed(call["table"], 1, column, value))


@pytest.mark.parametrize("name", BACKENDS)
def test_parameters(name: str) -> None:
    with using(name):
        for bits, levels, block, reason in (
            (1, 1, 512, "2 to 8 bits"),
            (9, 7, 512, "2 to 8 bits"),
            (4, 8, 512, "do not fit 4 bits"),
            (4, 0, 512, "do not fit"),
            (4, 7, 0, "multiple of 16"),
            (4, 7, 40, "multiple of 16"),
        ):
            form = Format("qsgd")
            for call in (encode_call(form), decode_call(form)):
                tail = list(call["tail"])
                if len(tail) > 5:
                    tail[3], tail[4], tail[7] = bits, levels, block
                else:
                    tail[2:] = bits, levels, block
                with pytest.raises(ValueError, match=reason):
                    run(call, tail=tail)
        with pytest.raises(ValueError, match="multiple of 16"):
            run(encode_call(Format("sign")), tail=(1.0, 1.0, 0, 8))
        with pytest.raises(ValueError, match="kind=3"):
            run(encode_call(Format("sign")), tail=(1.0, 1.0, 3, 16))
        call = encode_call(Format("qsgd"))
        with pytest.raises(ValueError, match="gain has 3 elements"):
            run(call, tail=(1.0, 1.0, torch.ones(3), *call["tail"][3:]))


@pytest.mark.skipif(not native.available(), reason="no native library")
@given(st.integers(0, len(FORMS) - 1), st.integers(0, 1), st.integers(0, 7), st.integers(-(2**63), 2**63 - 1))
def test_any_table_is_safe(form: int, row: int, column: int, value: int) -> None:
    """One wild number in the table: the call works or explains itself, and the bytes around its buffers stay."""
    call = encode_call(FORMS[form])
    guarded = torch.full((call["x"].numel() + 64,), 7.0)
    x = guarded[32:-32].copy_(call["x"])
    around = torch.full((call["wire"].numel() + 128,), 0xA5, dtype=torch.uint8)
    table = changed(call["table"], row, column, value)
    with using(native.isas()[-1]):
        try:
            run(call, x=x, wire=around[64:-64], table=table)
        except ValueError as error:
            assert f"table row {row}" in str(error)
        assert (guarded[:32] == 7).all() and (guarded[-32:] == 7).all()
        assert (around[:64] == 0xA5).all() and (around[-64:] == 0xA5).all()
        call = decode_call(FORMS[form])
        out = torch.full((call["out"].numel() + 64,), 7.0)
        try:
            run(call, out=out[32:-32], table=changed(call["table"], row, column, value))
        except ValueError as error:
            assert f"table row {row}" in str(error)
        except RuntimeError as error:  # zeros are no code of variable length
            assert "corrupt" in str(error)
        assert (out[:32] == 7).all() and (out[-32:] == 7).all()


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
