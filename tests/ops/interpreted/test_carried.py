"""Shared scales, dealt blocks, and sections of variable length on GPU kernels: the reference's bits and refusals."""

from __future__ import annotations

import pytest
import torch

from tests.ops import test_interleave, test_shared, test_variable
from tests.ops.interpreted.agreement import backends, full
from tests.ops.sparse_case import same

OPS = torch.ops.compcomm


@pytest.mark.parametrize("backend", backends("shared_encode", "shared_decode"))
@pytest.mark.parametrize(
    ("width", "levels", "norm2", "stochastic", "block", "kind"),
    [
        (4, 7, True, False, 16, "nonfinite"),
        (5, 7, False, True, 48, "normal"),
        (12, 127, False, False, 4112, "huge"),
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
        module = pytest.importorskip("compcomm.ops.triton.shared")
        monkeypatch.setattr(module, "NORMS", 128)
        monkeypatch.setattr(module, "TILE", 128)
    arguments = (kind, width, levels, norm2, stochastic, block, 1)
    due, found = test_shared.roundtrip("reference", *arguments), test_shared.roundtrip(backend, *arguments)
    for name, truth in due.items():
        assert same(found[name], truth), name


@pytest.mark.parametrize("backend", backends("shared_encode", "shared_decode"))
@pytest.mark.parametrize("width", [4, 5])
def test_shared_dithers_of_aligned_rows(backend: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One Philox call serves eight elements; the words of three ranks are summed."""
    tables = test_shared.tables

    def aligned(*args: int) -> tuple[torch.Tensor, torch.Tensor, int, int, int]:
        first, second, *rest = tables(*args)
        second[:, 4] *= 8
        return first, second, *rest

    monkeypatch.setattr(test_shared, "SIZES", (17, 140))
    monkeypatch.setattr(test_shared, "tables", aligned)
    arguments = ("normal", width, 2, False, True, 64, 3)
    due, found = test_shared.roundtrip("reference", *arguments), test_shared.roundtrip(backend, *arguments)
    assert all(same(found[name], truth) for name, truth in due.items())


@pytest.mark.parametrize("backend", backends("shared_encode", "shared_decode"))
def test_shared_refuses_tables_that_do_not_fit(backend: str) -> None:
    test_shared.test_tables_that_do_not_fit_are_refused(backend)


@pytest.mark.parametrize("backend", backends("deal"))
@pytest.mark.parametrize("kind", ["normal", "nonfinite", "denormal"])
@pytest.mark.parametrize("ways", [1, 3, 64])
def test_deal(backend: str, ways: int, kind: str) -> None:
    due, found = test_interleave.dealt("reference", ways, kind), test_interleave.dealt(backend, ways, kind)
    assert all(same(a, b) for a, b in zip(found, due, strict=True))


@pytest.mark.parametrize("backend", backends("deal"))
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
            OPS.deal(None, add, z, table, status, 1.0, 1.3, 48)
        found.append((z, status))
    assert all(same(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("backend", backends("deal"))
def test_deal_refuses(backend: str) -> None:
    x, z, status = torch.zeros(100), torch.zeros(400, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8)
    for column, value in ((0, 20), (3, 44), (6, 0), (7, 3)):
        bad = torch.tensor([[0, -1, 90, 0, 0, 0, 2, 0]])
        bad[0, column] = value
        with test_interleave.using(backend), pytest.raises(ValueError, match="row 0"):
            OPS.deal(x, None, z, bad, status, 1.0, 1.0, 16)


@pytest.mark.parametrize("backend", backends("squeeze", "spread"))
class TestVariable:
    """The cases of ``test_variable``: the reference says what a fault is, and nothing is written."""

    def test_there_and_back(self, backend: str) -> None:
        test_variable.test_there_and_back(backend)

    @pytest.mark.parametrize("length", [0, 3, 6, 40, 0x80000000, 0xFFFFFFFC])
    def test_a_corrupt_length(self, backend: str, length: int) -> None:
        test_variable.test_a_corrupt_length_names_the_message_and_the_row(backend, length)

    @pytest.mark.parametrize(("by", "reason"), [(4, "left over"), (-4, "0 are there"), (-48, "exact part")])
    def test_a_body_of_another_size(self, backend: str, by: int, reason: str) -> None:
        test_variable.test_a_body_of_another_size_is_corrupt(backend, by, reason)

    def test_arguments(self, backend: str) -> None:
        test_variable.test_arguments(backend)

    def test_any_bytes_are_safe(self, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every byte of the lengths, and both ends of every body, each wrong by itself."""
        for place in range(12, 24, 5):
            for value in (0, 8, 255):
                c = test_variable.make([[(3, 2), (2, 1)], [(1, 1)]])
                bodies = c.bodies
                bodies[place] = value
                found = []
                for name in ("reference", backend):
                    around, error = torch.full((c.wire.numel() + 64,), 0xA5, dtype=torch.uint8), ""
                    with test_variable.using(name):
                        try:
                            OPS.spread(bodies, c.places, c.table, c.spans, around[32:-32])
                        except RuntimeError as e:
                            error = str(e)
                    found.append((around, error))
                assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]

    def test_several_tiles(self, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Sections longer than a program copies, and more parts than are measured at a time."""
        if backend == "triton":
            monkeypatch.setattr(pytest.importorskip("compcomm.ops.triton.variable"), "TILE", 2048)
        c = test_variable.make([[(1500, 1300), (2, 1)], [(1, 1)] * 5], before=8)
        bodies, sizes = test_variable.squeeze(backend, c)
        assert torch.equal(bodies, c.bodies) and sizes.tolist() == c.places[:, 1].tolist()
        wires = torch.full_like(c.wire, 0xEE)
        with test_variable.using(backend):
            OPS.spread(bodies, c.places, c.table, c.spans, wires)
        assert torch.equal(wires, c.wire)
