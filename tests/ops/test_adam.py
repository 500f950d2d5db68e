"""Optimizer kernels: the reference's bits for every dtype and instruction set, and the formulas in double precision."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from compcomm.ops import native
from tests.ops.sparse_case import make, using

OPS = torch.ops.compcomm
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
DTYPES = (F32, BF16, F16, F64)
PAIRS = list(itertools.product(DTYPES, DTYPES))
SHAPES = ((), (1,), (15,), (16,), (17,), (0,), (3, 0), (7, 5, 3, 3), (100,), (4, 250), (4099,))
GAP = 3
POISON = 1e30
BACKENDS = ("reference", *native.isas())
LAST = ("reference", *native.isas()[-1:])
Change = Callable[[Tensor], Tensor]


class Case(NamedTuple):
    """Parameters and gradients, and three flat vectors with gaps between what belongs to them."""

    params: list[Tensor]
    grads: list[Tensor]
    starts: list[int]
    flats: list[Tensor]

    @property
    def spans(self) -> list[slice]:
        return [slice(s, s + p.numel()) for s, p in zip(self.starts, self.params, strict=True)]

    @property
    def outside(self) -> Tensor:
        mask = torch.ones(len(self.flats[0]), dtype=torch.bool)
        for span in self.spans:
            mask[span] = False
        return mask


def case(
    param: torch.dtype = F32,
    grad: torch.dtype = F32,
    kind: str = "normal",
    change: Change = lambda t: t,
    shapes: tuple[tuple[int, ...], ...] = SHAPES,
) -> Case:
    """``kind``: of the gradients; all else is normal, or the square of that."""
    params, grads, starts, at = list[Tensor](), list[Tensor](), list[int](), 1
    for i, shape in enumerate(shapes):
        n = int(np.prod(shape))
        params.append(change(make("normal", n, 2 * i).reshape(shape).to(param)))
        grads.append(change(make(kind, n, 2 * i + 1).reshape(shape).to(grad)))
        starts.append(at)
        at += n + GAP
    flats = [make("normal", at, 100), make("normal", at, 101).square(), make("normal", at, 102)]
    found = Case(params, grads, starts, flats)
    for flat in flats:
        flat[found.outside] = POISON
    return found


def bits(t: Tensor) -> Tensor:
    """The bytes in row-major order; what is not a number is one and the same NaN."""
    return torch.where(t.isnan(), torch.nan, t).contiguous().reshape(-1).view(torch.uint8)


def call(backend: str, op: str, c: Case, **options: Any) -> list[Tensor]:
    """All that the op may have written, on copies that keep their strides."""
    o = {"scale": 0.7, "l2": 0.0, "decay": 0.0, "in_place": False, **options}
    params = [torch.empty_strided(p.shape, p.stride(), dtype=p.dtype).copy_(p) for p in c.params]
    a, b, out = (flat.clone() for flat in c.flats)
    status = torch.zeros(1, dtype=torch.uint8)
    with using(backend):
        if op == "adam":
            OPS.adam(params, c.grads, c.starts, a, b, 0.9, 0.999, o["scale"], 1e-2, 1.3, 1e-8, o["decay"], o["l2"])
        elif op == "momentum":
            to = a if o["in_place"] else out
            OPS.momentum(c.grads, params, c.starts, a, to, 0.9, o["scale"], o["l2"], status)
        else:
            OPS.descend(params, c.starts, a, b, 1e-2, o["decay"])
    return [*params, a, b, out, status]


def agree(isa: str, op: str, c: Case, **options: Any) -> list[Tensor]:
    found, due = call(isa, op, c, **options), call("reference", op, c, **options)
    for i, (x, y) in enumerate(zip(found, due, strict=True)):
        assert torch.equal(bits(x), bits(y)), f"{op}, {i} of {len(due)}: {tuple(y.shape)} {y.dtype}"
    for flat, before in zip(found[-4:-1], c.flats, strict=True):
        assert torch.equal(bits(flat[c.outside]), bits(before[c.outside]))
    return found


@pytest.mark.parametrize(("param", "grad"), PAIRS)
@pytest.mark.parametrize("isa", native.isas())
def test_bits_of_every_pair(isa: str, param: torch.dtype, grad: torch.dtype) -> None:
    c = case(param, grad)
    for l2, decay in itertools.product((0.0, 0.03), (0.0, 0.02)):
        agree(isa, "adam", c, l2=l2, decay=decay)
    for l2, in_place in itertools.product((0.0, 0.03), (False, True)):
        agree(isa, "momentum", c, l2=l2, in_place=in_place)
    if grad is F32:
        for decay in (0.0, 0.02):
            agree(isa, "descend", c, decay=decay)


@pytest.mark.parametrize("kind", ["ties", "zero", "negative zero", "denormal", "huge", "nonfinite"])
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("isa", native.isas())
def test_bits_of_every_kind(isa: str, dtype: torch.dtype, kind: str) -> None:
    c = case(dtype, dtype, kind)
    agree(isa, "adam", c, l2=0.03, decay=0.02)
    agree(isa, "momentum", c, l2=0.03)
    c = c._replace(params=c.grads)
    agree(isa, "adam", c, decay=0.02)
    agree(isa, "adam", c)
    c = c._replace(flats=[make(kind, len(c.flats[0]), 5), make(kind, len(c.flats[0]), 6).square(), c.flats[2]])
    for op in ("adam", "momentum", "descend"):
        agree(isa, op, c, decay=0.02)


@pytest.mark.parametrize("isa", native.isas())
def test_what_goes_past_the_caches(isa: str) -> None:
    c = case(shapes=((3,), (4097, 17), (5000,)))
    long = [torch.cat([flat, torch.full((1 << 21,), POISON)]) for flat in c.flats]
    agree(isa, "momentum", c._replace(flats=long))


def transposed(t: Tensor) -> Tensor:
    return t.transpose(0, -1).contiguous().transpose(0, -1) if t.dim() > 1 else t


def channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t


def stepped(t: Tensor) -> Tensor:
    return t.repeat_interleave(2, -1)[..., ::2] if t.dim() else t


@pytest.mark.parametrize("change", [transposed, channels_last, stepped])
@pytest.mark.parametrize("which", ["params", "grads", "both"])
@pytest.mark.parametrize("isa", native.isas()[-1:])
def test_other_strides(isa: str, which: str, change: Change) -> None:
    plain, c = case(BF16, F32), case(BF16, F32, change=change)
    if which != "both":
        c = plain._replace(**{which: getattr(c, which)})
    assert not all(t.is_contiguous() for t in (*c.params, *c.grads))
    for op in ("adam", "momentum", "descend"):
        found, due = agree(isa, op, c, l2=0.03, decay=0.02), call(isa, op, plain, l2=0.03, decay=0.02)
        assert all(torch.equal(bits(x), bits(y)) for x, y in zip(found, due, strict=True))


@pytest.mark.parametrize("backend", LAST)
@pytest.mark.parametrize("op", ["adam", "momentum", "descend"])
def test_a_list_of_many_dtypes(op: str, backend: str) -> None:
    """Each parameter comes out as it does in a list of its own dtypes; all the same elements of the flat vectors."""
    wholes = [case(*pair, shapes=((100,), (4, 250))) for pair in PAIRS]
    n = len(wholes[0].flats[0])
    starts = [s + k * n for k, w in enumerate(wholes) for s in w.starts]
    flats = [torch.cat([w.flats[i] for w in wholes]) for i in range(3)]
    c = Case([p for w in wholes for p in w.params], [g for w in wholes for g in w.grads], starts, flats)
    found = call(backend, op, c, l2=0.03, decay=0.02)
    due = [call(backend, op, w, l2=0.03, decay=0.02) for w in wholes]
    for i, p in enumerate(found[:-4]):
        assert torch.equal(bits(p), bits(due[i // 2][i % 2]))
    for i in (-4, -3, -2):
        assert torch.equal(bits(found[i]), bits(torch.cat([d[i] for d in due])))


@pytest.mark.parametrize("param", DTYPES)
@pytest.mark.parametrize("isa", native.isas())
def test_missing_gradients_count_as_zeros(isa: str, param: torch.dtype) -> None:
    c, nothing = case(param, param), torch.zeros(0)
    c = c._replace(grads=[nothing if i % 2 else g for i, g in enumerate(c.grads)])
    zeros = c._replace(grads=[torch.zeros_like(p) if i % 2 else c.grads[i] for i, p in enumerate(c.params)])
    for l2 in (0.03,) if param is F64 else (0.0, 0.03):  # what is not read does not say fp64
        found, due = agree(isa, "momentum", c, l2=l2), call("reference", "momentum", zeros, l2=l2)
        assert all(torch.equal(bits(x), bits(y)) for x, y in zip(found, due, strict=True))


@pytest.mark.parametrize("grad", DTYPES)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_finite_is_said(backend: str, value: float, grad: torch.dtype) -> None:
    for i, n in enumerate((1, 15, 16, 17, 100)):
        for at in {0, n // 2, n - 1}:
            c = case(F32, grad, shapes=((8,), (n,), (40,)))
            assert call(backend, "momentum", c)[-1].tolist() == [0]
            c.params[0][1] = value  # only gradients count
            assert call(backend, "momentum", c)[-1].tolist() == [0]
            c.grads[1][at] = value
            out = call(backend, "momentum", c, in_place=i % 2)[-1]
            assert out.tolist() == [1]
    status = torch.full((1,), 6, dtype=torch.uint8)
    with using(backend):
        OPS.momentum(c.grads, c.params, c.starts, c.flats[0], c.flats[2], 0.9, 1.0, 0.0, status)
    assert status.tolist() == [7]


@pytest.mark.parametrize("dtype", (BF16, F16))
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_keeps_every_pattern(backend: str, dtype: torch.dtype) -> None:
    """All numbers go through fp32 and back as they are, and what is not a number stays none, whatever its payload."""
    patterns = torch.arange(1 << 16).to(torch.int16).view(dtype)
    payloads = torch.cat([2 ** torch.arange(23), 2 ** torch.arange(1, 24) - 1, 2**23 - 2 ** torch.arange(23)])
    no_numbers = torch.cat((payloads + 0x7F800000, payloads + 0x7F800000 - (1 << 31))).to(torch.int32).view(F32)
    assert no_numbers.isnan().all()
    with using(backend):
        found, zeros = patterns.clone(), torch.zeros(1 << 16)
        OPS.descend([found], [0], zeros, zeros + 1, 1.0, 0.0)
        spoilt = torch.ones(len(no_numbers), dtype=dtype)
        OPS.descend([spoilt], [0], no_numbers, torch.ones_like(no_numbers), 1.0, 0.0)
    number = ~patterns.isnan()
    assert torch.equal(found.view(torch.int16)[number], patterns.view(torch.int16)[number])
    assert found[~number].isnan().all() and spoilt.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_terms_of_factor_zero_are_not_read(backend: str, dtype: torch.dtype) -> None:
    c = case(dtype, F32)
    spoilt = c._replace(params=[torch.full_like(p, torch.inf) for p in c.params])
    assert torch.equal(call(backend, "momentum", spoilt)[-2], call(backend, "momentum", c)[-2])
    *params, a, b, _, _ = call(backend, "adam", spoilt, l2=1e-60)  # no number in fp32
    assert torch.equal(a, call(backend, "adam", c)[-4]) and torch.equal(b, call(backend, "adam", c)[-3])
    for p in (*params, *call(backend, "descend", spoilt)[:-4]):
        assert (p == torch.inf).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(F32, 2e-6), (BF16, 8e-3), (F16, 1e-3), (F64, 1e-12)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_formulas(backend: str, dtype: torch.dtype, tolerance: float) -> None:
    c = case(dtype, dtype)
    a, b, _ = (flat.double().numpy() for flat in c.flats)
    adam = call(backend, "adam", c, l2=0.03, decay=0.02)
    momentum = call(backend, "momentum", c, l2=0.03)
    descend = call(backend, "descend", c, decay=0.02)
    near = {"rtol": 3e-6, "atol": 1e-6}
    for i, span in enumerate(c.spans):
        p, g = (t.double().numpy().reshape(-1) for t in (c.params[i], c.grads[i]))
        y = 0.7 * g + 0.03 * p
        m, v = 0.9 * a[span] + 0.1 * y, 0.999 * b[span] + 0.001 * y * y
        np.testing.assert_allclose(adam[-4][span].numpy(), m, **near)
        np.testing.assert_allclose(adam[-3][span].numpy(), v, **near)
        np.testing.assert_allclose(momentum[-2][span].numpy(), m, **near)
        left = p - (0.01 * m / (np.sqrt(v) * 1.3 + 1e-8) + 0.02 * p)
        np.testing.assert_allclose(adam[i].double().numpy().reshape(-1), left, rtol=tolerance, atol=tolerance)
        left = p - (0.01 * a[span] / b[span] + 0.02 * p)
        bound = tolerance * (1 + np.abs(left))
        assert (np.abs(descend[i].double().numpy().reshape(-1) - left) <= bound).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_of_torch(backend: str) -> None:
    """Ten steps of torch's own Adam and AdamW."""
    for weight_decay, coupled in ((0.0, True), (0.1, True), (0.1, False)):
        c = case()
        theirs = [torch.nn.Parameter(p.clone()) for p in c.params]
        kind = torch.optim.Adam if coupled else torch.optim.AdamW
        optimizer = kind(theirs, lr=0.01, weight_decay=weight_decay)
        m, v = torch.zeros_like(c.flats[0]), torch.zeros_like(c.flats[0])
        for t in range(1, 11):
            for p, g in zip(theirs, c.grads, strict=True):
                p.grad = g * t
            optimizer.step()
            rate, correction = 0.01 / (1 - 0.9**t), 1 / (1 - 0.999**t) ** 0.5
            decay, l2 = (0.0, weight_decay) if coupled else (0.01 * weight_decay, 0.0)
            with using(backend):
                OPS.adam(
                    c.params, c.grads, c.starts, m, v, 0.9, 0.999, float(t), rate, correction, 1e-8, decay, l2
                )  # fmt: skip
        for ours, their in zip(c.params, theirs, strict=True):
            torch.testing.assert_close(ours, their.detach(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("backend", LAST)
def test_autograd_sees_the_change(backend: str, dtype: torch.dtype) -> None:
    p = torch.nn.Parameter(torch.ones(3, dtype=dtype))
    flats = torch.ones(3), torch.ones(3)
    for op in (
        lambda: OPS.adam([p], [p.detach()], [0], *flats, 0.9, 0.99, 1.0, 0.1, 1.0, 1e-8, 0.0, 0.0),
        lambda: OPS.descend([p], [0], *flats, 0.1, 0.0),
    ):
        loss = (p * p).sum()
        before = p.detach().clone()
        with using(backend), torch.no_grad():
            op()
        assert (p != before).all()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("backend", LAST)
def test_no_parameters(backend: str) -> None:
    for n in (0, 5):
        c = Case([], [], [], [torch.ones(n)] * 3)
        for op in ("adam", "momentum", "descend"):
            assert all((flat == 1).all() for flat in call(backend, op, c)[:-1])


def sparse(c: Case) -> Case:
    return c._replace(grads=[c.grads[0], c.grads[1].to_sparse(), c.grads[2]])


def instead(name: str, i: int, value: Any) -> Callable[[Case], Case]:
    """A case with another entry in one of its lists."""
    return lambda c: c._replace(**{name: [*getattr(c, name)[:i], value, *getattr(c, name)[i + 1 :]]})


LISTS: list[tuple[Callable[[Case], Case], str, str]] = [  # what is wrong, which op knows, what it says
    (lambda c: c._replace(starts=c.starts[:-1]), "adam momentum descend", r"starts has 2 entries"),
    (lambda c: c._replace(params=c.params[:-1]), "adam momentum descend", r"params has 2"),
    (lambda c: c._replace(grads=c.grads[:-1]), "adam momentum", r"grads has 2"),
    (instead("starts", 1, -1), "adam momentum descend", r"starts\[1\] is -1"),
    (instead("starts", 1, -(2**63)), "adam momentum descend", r"starts\[1\] is -9"),
    (instead("starts", 2, 2**62), "adam momentum descend", r"starts\[2\] is 4"),
    (instead("starts", 2, 70), "adam momentum descend", r"starts\[2\] is 70: params\[2\] takes elements 70..87 of 70"),
    (instead("grads", 1, torch.zeros(5, 8)), "adam momentum", r"grads\[1\] has shape \(5, 8\).*\(8, 5\)"),
    (instead("grads", 1, torch.zeros(39)), "adam momentum", r"grads\[1\] has shape \(39,\)"),
    (instead("grads", 1, torch.zeros(0)), "adam", r"grads\[1\] has shape \(0,\)"),
    (instead("grads", 1, torch.zeros(8, 5, dtype=torch.int32)), "adam momentum", r"grads\[1\] is torch.int32"),
    (
        instead("params", 1, torch.zeros(8, 5, dtype=torch.complex64)),
        "adam momentum descend",
        r"params\[1\] is torch.c",
    ),
    (sparse, "adam momentum", r"grads\[1\] is torch.sparse_coo; call .to_dense"),
]
FLATS: list[tuple[int, str, str]] = [(0, "adam momentum descend", "mean")]
FLATS += [(1, "adam", "square"), (1, "descend", "denominator"), (2, "momentum", "out")]


@pytest.mark.parametrize("backend", LAST)
class TestWrongArguments:
    @pytest.mark.parametrize(("spoil", "ops", "message"), LISTS, ids=[message for *_, message in LISTS])
    @pytest.mark.parametrize("strange", [False, True])
    def test_lists(self, strange: bool, spoil: Callable[[Case], Case], ops: str, message: str, backend: str) -> None:
        good = case(F64 if strange else F32, shapes=((3,), (8, 5), (17,)))  # F64: beside what the kernels know
        if strange:
            good.params[1:] = [p.float() for p in good.params[1:]]
        bad = spoil(good)
        for op in ops.split():
            before = [t.clone() for t in (*bad.params, *bad.flats)]
            with using(backend), pytest.raises((TypeError, ValueError), match=rf"compcomm.{op}: .*{message}"):
                run(op, bad)
            assert all(torch.equal(x, y) for x, y in zip(before, (*bad.params, *bad.flats), strict=True))

    @pytest.mark.parametrize(("which", "ops", "name"), FLATS)
    def test_flats(self, which: int, ops: str, name: str, backend: str) -> None:
        c = case(shapes=((3,), (8, 5), (17,)))
        good = c.flats[which]
        for value in (good.half(), good.reshape(1, -1), good.repeat_interleave(2)[::2], good[:-1]):
            for op in ops.split():
                bad = c._replace(flats=[value if i == which else flat for i, flat in enumerate(c.flats)])
                said = f"compcomm.{op}: .*{name}"
                with using(backend), pytest.raises((TypeError, ValueError), match=said):
                    run(op, bad)

    def test_status(self, backend: str) -> None:
        c = case(shapes=((3,),))
        for status in (torch.zeros(1), torch.zeros(0, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8)):
            with using(backend), pytest.raises((TypeError, ValueError), match=r"compcomm.momentum: status"):
                OPS.momentum(c.grads, c.params, c.starts, c.flats[0], c.flats[2], 0.9, 1.0, 0.0, status)


def run(op: str, c: Case) -> None:
    """The op on the case itself."""
    a, b, out = c.flats
    if op == "adam":
        OPS.adam(c.params, c.grads, c.starts, a, b, 0.9, 0.999, 1.0, 1e-2, 1.3, 1e-8, 0.0, 0.0)
    elif op == "momentum":
        OPS.momentum(c.grads, c.params, c.starts, a, out, 0.9, 1.0, 0.0, torch.zeros(1, dtype=torch.uint8))
    else:
        OPS.descend(c.params, c.starts, a, b, 1e-2, 0.0)
