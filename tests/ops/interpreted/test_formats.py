"""Dense formats on GPU kernels answer to the reference bit for bit."""

from __future__ import annotations

import torch

from tests.ops.dense_case import Form, Format, case, encode, same
from tests.ops.formats import Coded, float8, minmax, natural
from tests.ops.interpreted.agreement import check_decode, check_encode, of
from tests.ops.sparse_case import OPS, make, using


def _of(forms: list[Coded], *labels: str) -> list[Coded]:
    return [form for form in forms if form.label in labels]


FORMATS: list[Form] = [
    *(Format("dense"), Format("cast"), Format("cast", flag=True)),
    *(Format("sign"), Format("sign", block=48, flag=True)),
    *(Format("qsgd"), Format("qsgd", bits=3, stochastic=True)),
    *_of(minmax.FORMATS, "5 bits nearest 512", "4 bits random 512"),
    natural.FORMATS[0],
    *_of(natural.FORMATS, "3 bits, max norm, blocks of 512"),
    *float8.FORMATS[:2],
]
# Every width, both norms and roundings, and blocks that are short, padded, and too long for one tile.
VARIED: list[Form] = [
    Format("sign", block=16),
    Format("qsgd", bits=2, stochastic=True, block=16),
    Format("qsgd", bits=5, block=48),
    Format("qsgd", bits=6, norm2=True, stochastic=True, block=64),
    Format("qsgd", bits=7, stochastic=True, block=4096),
    Format("qsgd", bits=8, norm2=True, levels=5, block=256),
    Format("qsgd", bits=3, block=4112),
    *_of(minmax.FORMATS, "1 bits random 48", "7 bits random 1040", "3 bits nearest 2048", "8 bits nearest 512"),
    *_of(minmax.FORMATS, "2 bits random 512", "6 bits nearest 512"),
    *_of(natural.FORMATS, "3 bits, max norm, blocks of 16", "5 bits, max norm, blocks of 48"),
    *_of(natural.FORMATS, "4 bits, max norm, blocks of 2048", "8 bits, max norm, blocks of 512"),
    *float8.FORMATS[2:],
]
LONG: list[Form] = [Format("qsgd", block=1 << 17), Format("qsgd", bits=5, stochastic=True, block=6160)]


@of("encode", FORMATS)
def test_encode(backend: str, form: Form) -> None:
    check_encode(backend, form)


@of("decode", FORMATS)
def test_decode(backend: str, form: Form) -> None:
    check_decode(backend, form)


def _check_words(backend: str, form: Form, aligned: bool) -> None:
    """One encoder call and one decoder call on buffers of words; the message is the reference's."""
    block = getattr(form, "block", 512)
    sizes = (block, 4, 2 * block + 20) if aligned else (block - 1, 3, 2 * block + 17)
    lines, at, nbytes = [], 4, 4
    for r, n in enumerate(sizes):
        lines.append([at, -1 if r == 1 else at, n, nbytes, 128 * r, 99 * r - 2**60, 0, r])
        at += n + 4 * aligned
        nbytes += form.section(n) + 4
    table, gain = torch.tensor(lines), torch.tensor([0.8, 1.0, 0.5])
    x, add, results = make("normal", at + 4, 1), make("normal", at + 4, 2), []
    for name in ("reference", backend):
        left, wire, out = x.clone(), torch.full((nbytes,), 0xA5, dtype=torch.uint8), add.clone()
        status, skip = torch.zeros(9, dtype=torch.uint8), torch.zeros(8, dtype=torch.uint8)
        with using(name):
            encoder, decoder = (getattr(OPS, f"{form.name}_{kind}") for kind in ("encode", "decode"))
            encoder(left, add, wire, table, status, 0.9, 1.1, *form.encode_tail(gain, 1, 1))
            wires = (results[0][1] if results else wire)[None]
            decoder(wires, table, skip, out, 0.5, True, *form.decode_tail())
        results.append((left, wire, status, out))
    assert all(same(expected, found) for expected, found in zip(*results, strict=True)), form


@of("encode", [form for form in (*FORMATS, *VARIED) if form.name not in ("dense", "cast")])
def test_words(backend: str, form: Form) -> None:
    """Messages of words, with rows, and without, that begin and end where vectors and runs of dithers do."""
    _check_words(backend, form, aligned=True)
    if form.stochastic or backend == "cuda":  # only dithers know the difference, and vectors
        _check_words(backend, form, aligned=False)


@of("encode", LONG)
def test_blocks_longer_than_a_tile(backend: str, form: Form) -> None:
    c = case(form, "normal", (6160 + 2049, 7))
    expected, found = encode("reference", form, c, 0.75, 1.3), encode(backend, form, c, 0.75, 1.3)
    assert all(same(found[name], tensor) for name, tensor in expected.items())
