"""Dense, cast and sign on GPU kernels answer to the reference bit for bit."""

from __future__ import annotations

from tests.ops.dense_case import Format
from tests.ops.interpreted.agreement import check_decode, check_encode, full, of

FORMATS = [
    Format("dense"),
    Format("cast"),
    Format("cast", flag=True),
    Format("sign"),
    Format("sign", flag=True),
    full(Format("sign", block=16)),
    Format("sign", block=48),
]


@of("encode", FORMATS)
def test_encode(backend: str, form: Format) -> None:
    check_encode(backend, form)


@of("decode", FORMATS)
def test_decode(backend: str, form: Format) -> None:
    check_decode(backend, form)
