"""Shared scales and permuted blocks on GPU kernels: the reference's bits and refusals."""

from __future__ import annotations

import pytest
import torch

from tests.ops import test_interleave, test_shared
from tests.ops.interpreted.agreement import backends, full
from tests.ops.sparse_case import same

OPS = torch.ops.compcomm


@pytest.mark.parametrize("backend", backends("shared_encode", "shared_decode"))
@pytest.mark.parametrize(
    ("width", "levels", "norm2", "stochastic", "block", "kind"),
    [
        (4, 7, True, False, 16, "nonfinite"),
        (5, 7, False, True, 48, "normal"),
        (12, 127, False, False, 208, "huge"),  # longer than a program
        (31, 1, True, True, 16, "denormal"),
        full(6, 3, False, False, 256, "ties"),
        full(3, 3, False, False, 16, "zero"),
    ],
)
def test_shared_scales(
    backend: str, width: int, levels: int, norm2: bool, stochastic: bool, block: int, kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(test_shared, "SIZES", (0, 1, 16, 17, 300))
    if backend == "triton":
        module = pytest.importorskip("compcomm.ops.triton.shared_scale")
        monkeypatch.setattr(module, "NORMS", 128)
        monkeypatch.setattr(module, "TILE", 128)
    arguments = (kind, width, levels, norm2, stochastic, block, 1)
    due, found = test_shared.roundtrip("reference", *arguments), test_shared.roundtrip(backend, *arguments)
    for name, truth in due.items():
        assert same(found[name], truth), name


@pytest.mark.parametrize("backend", backends("shared_encode", "shared_decode"))
@pytest.mark.parametrize("width", [4, 5])
def test_shared_dithers_of_aligned_rows(backend: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One Philox call serves eight elements; the words of two ranks are summed."""
    tables = test_shared.tables

    def aligned(*args: int) -> tuple[torch.Tensor, torch.Tensor, int, int, int]:
        first, second, *rest = tables(*args)
        second[:, 4] *= 8
        return first, second, *rest

    monkeypatch.setattr(test_shared, "SIZES", (17, 140))
    monkeypatch.setattr(test_shared, "tables", aligned)
    arguments = ("normal", width, 2, False, True, 64, 2)
    due, found = test_shared.roundtrip("reference", *arguments), test_shared.roundtrip(backend, *arguments)
    assert all(same(found[name], truth) for name, truth in due.items())


@pytest.mark.parametrize("backend", backends("shared_encode", "shared_decode"))
def test_shared_refuses_tables_that_do_not_fit(backend: str) -> None:
    test_shared.test_tables_that_do_not_fit_are_refused(backend)


@pytest.mark.parametrize("backend", backends("permute_blocks"))
@pytest.mark.parametrize("kind", ["normal", "nonfinite", "denormal"])
@pytest.mark.parametrize("ways", [1, 3, 64])
def test_permute_blocks(backend: str, ways: int, kind: str) -> None:
    due, found = test_interleave.permuted("reference", ways, kind), test_interleave.permuted(backend, ways, kind)
    assert all(same(a, b) for a, b in zip(found, due, strict=True))


@pytest.mark.parametrize("backend", backends("permute_blocks"))
def test_deal_in_other_blocks(backend: str) -> None:
    """Blocks of 48, that tiles cut; half-precision gradients and no x."""
    table, numel, nbytes = test_interleave.tables(5)
    table[:, 0], table[:, 1] = -1, table[:, 0].clamp(min=3)
    table[2, 1] = 50
    add = test_interleave.make("normal", numel).half()
    found = []
    for name in ("reference", backend):
        z, status = torch.full((nbytes,), 0xA5, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8)
        with test_interleave.using(name):
            OPS.permute_blocks(None, add, z, table, status, 1.0, 1.3, 48)
        found.append((z, status))
    assert all(same(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("backend", backends("permute_blocks"))
def test_deal_refuses(backend: str) -> None:
    x, z, status = torch.zeros(100), torch.zeros(400, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8)
    for column, value in ((0, 20), (3, 44), (6, 0), (7, 3)):
        bad = torch.tensor([[0, -1, 90, 0, 0, 0, 2, 0]])
        bad[0, column] = value
        with test_interleave.using(backend), pytest.raises(ValueError, match="row 0"):
            OPS.permute_blocks(x, None, z, bad, status, 1.0, 1.0, 16)
