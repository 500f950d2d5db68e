"""Words of codes under a shared scale: every instruction set answers to the reference, and words may be summed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compcomm.ops import native
from compcomm.ops.reference.shared_scale import section
from tests.ops.sparse_case import KINDS, make, using

OPS = torch.ops.compcomm
SIZES = (0, 1, 15, 16, 17, 511, 512, 1025, 4099)
BACKENDS = ("reference", *native.isas())


def tables(width: int, block: int) -> tuple[Tensor, Tensor, int, int, int]:
    """(rows for the norms, rows for the words, elements, bytes of norms, bytes of words), with gaps everywhere."""
    first, second = [], []
    at, norm, word = 3, 8, 12
    for i, n in enumerate(SIZES):
        first.append([at, -1 if i % 4 == 2 else at + 1, n, norm, 16 * i, 99 - i * 2**60, 0, i % 3])
        second.append([at, norm, n, word, 16 * i, 99 - i * 2**60, 0, i % 3])
        at, norm, word = at + n + 3, norm + 4 * -(-n // block) + 8, word + section(n, width) + 8
    return torch.tensor(first), torch.tensor(second), at + 4, norm, word


def roundtrip(
    backend: str, kind: str, width: int, levels: int, norm2: bool, stochastic: bool, block: int, world: int = 1
) -> dict[str, Tensor]:
    """Norms, words of ``world`` ranks and their sum, what is left in each x, and the decoded mean."""
    first, second, numel, nbytes, size = tables(width, block)
    found: dict[str, Tensor] = {}
    norms = []
    with using(backend):
        for r in range(world):
            x, add = make("normal", numel, r), make(kind, numel, 100 + r)
            own = torch.full((nbytes,), 0xA5, dtype=torch.uint8)
            status = torch.zeros(4, dtype=torch.uint8)
            OPS.shared_norms(x, add, own, first, status, 0.75, 1.3, levels, norm2, block)
            found |= {f"x{r}": x, f"y{r}": x.clone(), f"norms{r}": own, f"status{r}": status}
            norms.append(own)
        shared = norms[0].clone()
        for n, at in second[:, [2, 1]].tolist():
            cut = slice(at, at + 4 * -(-n // block))
            shared[cut] = torch.stack([o[cut].clone().view(torch.float32) for o in norms]).amax(0).view(torch.uint8)
        total = None
        for r in range(world):
            words = torch.full((size,), 0xA5 if r == 0 else 0, dtype=torch.uint8)
            OPS.shared_encode(found[f"x{r}"], shared, words, second, width, levels, stochastic, block, 3, r)
            found[f"words{r}"] = words
            total = (
                words.clone()
                if total is None
                else (total.view(torch.int32) + words.view(torch.int32)).view(torch.uint8)
            )
        assert total is not None
        for add_to in (False, True):
            out = torch.full((numel,), 2.0)
            skip = torch.tensor([0, 0, 1], dtype=torch.uint8)
            OPS.shared_decode(total, shared, second, skip, out, 1.0 / world, add_to, width, levels, block, world)
            found[f"out{add_to}"] = out
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("width", "levels", "norm2", "stochastic", "block"),
    [(2, 1, False, True, 512), (4, 7, False, False, 16), (5, 7, True, True, 64), (12, 127, False, True, 4096)],
)
def test_every_instruction_set_gives_the_same_bits(
    kind: str, width: int, levels: int, norm2: bool, stochastic: bool, block: int
) -> None:
    due = roundtrip("reference", kind, width, levels, norm2, stochastic, block)
    assert due["x0"].isfinite().all() and due["outFalse"].isfinite().all()
    for isa in native.isas():
        found = roundtrip(isa, kind, width, levels, norm2, stochastic, block)
        for name, truth in due.items():
            assert torch.equal(found[name].view(torch.uint8), truth.view(torch.uint8)), (isa, name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("world", [2, 5, 64])
def test_a_sum_of_words_is_the_sum_of_values(backend: str, world: int) -> None:
    """Lanes do not carry into each other, whatever the number of ranks: what is decoded is the sum of what was sent."""
    width = (2 * 7 * world).bit_length()
    found = roundtrip(backend, "normal", width, 7, False, True, 64, world)
    sent = sum((found[f"y{r}"] - found[f"x{r}"]).double() for r in range(world)) / world
    _, rows, *_ = tables(width, 64)
    for at, _, n, *_, index in rows.tolist():
        due = torch.zeros(n).double() if index == 2 else sent[at : at + n]
        assert torch.allclose(found["outFalse"][at : at + n].double(), due, atol=1e-5)
        assert torch.allclose(found["outTrue"][at : at + n].double(), due + 2, atol=1e-5)
    assert (found["outFalse"][:3] == 2).all(), "written before the first row"


@pytest.mark.parametrize("backend", ("reference", *native.isas()[-1:]))
def test_tables_that_do_not_fit_are_refused(backend: str) -> None:
    first, second, numel, nbytes, size = tables(4, 16)
    norms, words = torch.zeros(nbytes, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    x, skip = torch.zeros(numel), torch.zeros(3, dtype=torch.uint8)
    with using(backend):
        for column, value in ((0, numel), (0, -2), (1, nbytes), (2, 2**50), (3, size), (3, -4)):
            bad = second.clone()
            bad[-1, column] = value
            with pytest.raises((ValueError, RuntimeError)):
                OPS.shared_encode(x, norms, words, bad, 4, 7, False, 16, 0, 0)
            with pytest.raises((ValueError, RuntimeError)):
                OPS.shared_decode(words, norms, bad, skip, x, 1.0, False, 4, 7, 16, 1)
        with pytest.raises(ValueError, match="width=40"):
            OPS.shared_encode(x, norms, words, second, 40, 7, False, 16, 0, 0)
        with pytest.raises(ValueError, match="levels=200"):
            OPS.shared_norms(x, None, norms, first, torch.zeros(4, dtype=torch.uint8), 1.0, 1.0, 200, False, 16)
