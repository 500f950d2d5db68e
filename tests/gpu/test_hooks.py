"""DDP's hook on CUDA tensors: what it averages, what it keeps, and that nothing waits for the device.

Two and four processes share one GPU over Gloo; NCCL wants a GPU for each rank, so there it is a world of one.
"""

from __future__ import annotations

import io
import json
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import compcomm as cc
from compcomm.core.context import Arena
from compcomm.core.source import Source, Target
from compcomm.core.state import Store
from compcomm.core.structure import controllers
from compcomm.engine.jobs import Job, Step
from compcomm.engine.scheduler import Scheduler
from compcomm.testing.inputs import coding
from compcomm.transports.process_group import ProcessGroup
from tests.contract.cases import COMPRESSORS, REDUCERS
from tests.gpu import device
from tests.multi import models
from tests.multi.given import SHAPES, Given, Named, gradients, hooked, simulate
from tests.multi.harness import Workers

pytestmark = pytest.mark.multi

DEVICE = str(device.DEVICE)
QUANTISED = "ErrorFeedback(QSGD(bits=4, rounding='nearest'))"
GATHERED = [
    QUANTISED,
    "ErrorFeedback(AllGather(QSGD(bits=4, rounding='nearest')))",
    "ErrorFeedback(AllGather(SignScale()))",
    "ErrorFeedback(AllGather(TopK(ratio=0.05)))",
    "EF21(AllGather(TopK(ratio=0.05)))",
]
"""Ranks decode the same messages in the same order: equal to the bit. (Between two ranks the first is gathered too.)"""
SUMMED = ["Exact()", "PowerSGD(rank=2)", "AllReduce(RandK(ratio=0.1))", "ErrorFeedback(TwoPhase(SignScale()))"]
"""Sums of floats, in an order of the collective's own, or products that promise none."""
STEPS = 5


def moved(named: Named, where: str) -> Named:
    return {n: t.to(where) for n, t in named.items()}


def averages(rank: int, world: int, reducer: str, where: str, bad: int = -1, half: bool = False) -> Any:
    """Every step's gradients after the hook, and the memory at the end. In step ``bad`` the last rank has one infinite
    number. ``half``: parameters and gradients are bf16."""
    module = Given(dict.fromkeys(SHAPES, torch.bfloat16) if half else None).to(where)
    model, attachment = hooked(module, reducer)
    found: list[Named] = []
    for step in range(STEPS):
        given = gradients(rank, step)
        if step == bad and rank == world - 1:
            given["a"][5, 7] = torch.inf
        model.zero_grad()
        model(moved(given, where)).backward()
        found.append({n: p.grad.cpu().clone() for n, p in module.named_parameters() if p.grad is not None})
    memory = {slot: moved(kept, "cpu") for slot, kept in models.slots(attachment).items()}
    return found, memory


@pytest.mark.parametrize("reducer", GATHERED + SUMMED)
def test_two_ranks_average_as_on_the_cpu(two: Workers, reducer: str) -> None:
    on_cpu, on_gpu = (two.run(averages, reducer=reducer, where=where) for where in ("cpu", DEVICE))
    agree(on_gpu, on_cpu, reducer in GATHERED)


@pytest.mark.parametrize("reducer", GATHERED)
def test_one_rank_over_nccl_leaves_what_it_leaves_on_the_cpu(alone: Workers, reducer: str) -> None:
    """Nothing is sent, everything is coded."""
    on_cpu, on_gpu = (alone.run(averages, reducer=reducer, where=where) for where in ("cpu", DEVICE))
    agree(on_gpu, on_cpu, exact=True)


@pytest.mark.parametrize("reducer", GATHERED[:4])
def test_gradients_of_half_precision(two: Workers, reducer: str) -> None:
    on_cpu, on_gpu = (two.run(averages, reducer=reducer, where=where, half=True) for where in ("cpu", DEVICE))
    agree(on_gpu, on_cpu, exact=False)


@pytest.mark.parametrize("reducer", ["ErrorFeedback(AllGather(TopK(ratio=0.05)))", QUANTISED])
def test_four_ranks_average_as_on_the_cpu(four: Workers, reducer: str) -> None:
    on_cpu, on_gpu = (four.run(averages, reducer=reducer, where=where) for where in ("cpu", DEVICE))
    agree(on_gpu, on_cpu, "AllGather" in reducer)


def agree(found: list[Any], expected: list[Any], exact: bool) -> None:
    for rank, ((means, memory), (due, kept)) in enumerate(zip(found, expected, strict=True)):
        for step, (mine, theirs) in enumerate(zip(means, due, strict=True)):
            assert mine.keys() == theirs.keys()
            for n, t in mine.items():
                assert device.same(t, found[0][0][step][n]), f"the ranks differ in {n}"
                near(t, theirs[n], exact, (rank, step, n))
        for slot, tensors in kept.items():
            for n, t in tensors.items():
                near(memory[slot][n], t, exact, (rank, slot, n))


def near(a: Tensor, b: Tensor, exact: bool, what: object) -> None:
    """Parameters that travel exact are summed by the collective, or decoded; either way two ranks' sum is one sum."""
    if exact:
        assert device.same(a, b), what
    else:
        rtol, atol = (1e-4, 1e-5) if a.dtype is torch.float32 else (1e-2, 1e-3)
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, equal_nan=True, msg=lambda m: f"{what}: {m}")


def test_two_ranks_average_as_the_simulator_does(two: Workers) -> None:
    results = two.run(averages, reducer=QUANTISED, where=DEVICE)
    steps = [[gradients(rank, t) for rank in range(2)] for t in range(STEPS)]
    means, _ = simulate(cc.parse(QUANTISED), 2, steps, [list(SHAPES)])
    for found, due in zip(results[0][0], means, strict=True):
        for n, t in found.items():
            torch.testing.assert_close(t.view(-1), due[n].view(-1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("reducer", ["ErrorFeedback(AllGather(TopK(ratio=0.05)))", QUANTISED])
def test_a_bad_step_is_nan_and_loses_nothing(two: Workers, reducer: str) -> None:
    """One infinite number on one rank: the bucket's gradients are NaN everywhere, and the memory is finite and, in the
    end, that of the same steps on the CPU: what the optimizer skipped was given back."""
    on_cpu, on_gpu = (two.run(averages, reducer=reducer, where=where, bad=2) for where in ("cpu", DEVICE))
    agree(on_gpu, on_cpu, exact=True)
    for found, memory in on_gpu:
        assert bool(found[2]["a"].isnan().all())
        assert not any(bool(t.isnan().any()) for step in (*found[:2], *found[3:]) for t in step.values())
        assert all(bool(t.isfinite().all()) for t in memory["residual"].values())
        assert any(bool(t.any()) for t in memory["residual"].values())
    # What was applied, and what is left, is what there was: of step 2 all, but for the number that was not finite.
    for n in ("a", "b", "d", "e"):
        applied = sum(step[n].double() for i, step in enumerate(on_gpu[0][0]) if i != 2)
        left = sum(memory["residual"][n].double().view(SHAPES[n]) for _, memory in on_gpu) / 2
        true = sum(gradients(rank, t)[n].double() for rank in range(2) for t in range(STEPS)) / 2
        if n == "a":
            true[5, 7] -= gradients(1, 2)["a"][5, 7].double() / 2
        torch.testing.assert_close(applied + left, true, rtol=1e-4, atol=1e-5)


def resumes(rank: int, world: int, reducer: str, where: str) -> Any:
    inputs = [x.to(where) for x in models.batches(rank, 8)]
    through, attached = models.wrap(models.mlp().to(where), cc.parse(reducer), seed=5)
    models.train(through, inputs[:4])
    buffer = io.BytesIO()
    torch.save({"model": through.module.state_dict(), "hook": attached.state_dict()}, buffer)
    expected = models.train(through, inputs[4:])
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True, map_location="cpu")
    again, second = models.wrap(models.mlp(seed=9).to(where), cc.parse(reducer), seed=5)
    again.module.load_state_dict(saved["model"])
    second.load_state_dict(saved["hook"])
    found = models.train(again, inputs[4:])
    return expected.cpu(), found.cpu(), second.step


STATEFUL = [QUANTISED, "ErrorFeedback(TopK(ratio=0.05))", "ErrorFeedback(Contractive(QSGD(bits=4)))"]


@pytest.mark.parametrize("reducer", STATEFUL)
def test_a_checkpoint_resumes_bit_for_bit(two: Workers, alone: Workers, reducer: str) -> None:
    for workers in (alone, two):
        for expected, found, step in workers.run(resumes, reducer=reducer, where=DEVICE):
            assert torch.equal(expected, found) and step == 8


def unwatched(rank: int, world: int, reducer: str, where: str, before: int = 2, count: int = 20) -> Any:
    """Steps that may not wait for the device. Before them two or more: the first of all, after which DDP cuts its
    buckets anew, and in the second brings their order to the host itself."""
    torch.cuda.set_device(0)
    module = models.mlp().to(where)
    model, attachment = models.wrap(module, cc.parse(reducer))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=True)
    inputs = [x.to(where) for x in models.batches(rank, before + count)]

    def steps(some: list[Tensor]) -> None:
        for x in some:
            optimizer.zero_grad()
            model(x).pow(2).mean().backward()
            optimizer.step()

    steps(inputs[:before])
    torch.cuda.synchronize()
    with device.unwaiting():
        steps(inputs[before:])
    return models.flat(model).cpu(), attachment.step


@pytest.mark.parametrize("reducer", [QUANTISED, "ErrorFeedback(TopK(ratio=0.05))", "ErrorFeedback(SignScale())"])
def test_twenty_steps_never_wait_for_the_device(alone: Workers, reducer: str) -> None:
    (found,) = alone.run(unwatched, reducer=reducer, where=DEVICE)
    flat, steps = found
    assert steps == 22 and bool(flat.isfinite().all())


def parts(described: Any) -> Iterator[Any]:
    """A reducer or compressor, and all that it is made of."""
    yield described
    for value in vars(described).values():
        for inner in value.values() if isinstance(value, dict) else (value,):
            if isinstance(inner, cc.Reducer | cc.Compressor):
                yield from parts(inner)


RARE = (cc.Sketch, cc.TernGrad, cc.Threshold, cc.TwoMeans)


def waits(reducer: cc.Reducer) -> str:
    """Why a step of it waits for the device, by its documentation; "": it does not."""
    if reducer.traits.variable:
        return "the length of its messages must be known"
    if any(isinstance(part, cc.SparseAllReduce) for part in parts(reducer)):
        return "SparseAllReduce cuts its tables on the host"
    if any(isinstance(part, RARE) for part in parts(reducer)):
        return "its ops have no kernels for GPUs"
    return "its controller reviews steps" if next(controllers(reducer), None) is not None else ""


def chosen(several: Sequence[cc.Reducer | cc.Compressor]) -> cc.Reducer | cc.Compressor:
    """The one that stands for its class: the first that does not wait, where there is one."""
    return next((one for one in several if not waits(cc.settle(one, 1))), several[0])


METHODS = {
    repr(coding(one)): cc.settle(one, 1) for kinds in (REDUCERS, COMPRESSORS) for one in map(chosen, kinds.values())
}
"""One of every exported class."""


@pytest.mark.parametrize("method", METHODS)
def test_no_method_waits_for_the_device(alone: Workers, method: str) -> None:
    """Once schedules, whose new settings bring new tables, have come to their end."""
    if reason := waits(METHODS[method]):
        pytest.skip(reason)
    ((flat, steps),) = alone.run(unwatched, reducer=method, where=DEVICE, before=8, count=4)
    assert steps == 12 and bool(flat.isfinite().all())


def test_a_step_that_landed_before_a_capture_is_settled_beside_it() -> None:
    """The graph holds the second step alone, and finds in the residual what the first one left."""
    layout = cc.Layout.of([("w", (64, 100))])
    given = [torch.randn(layout.numel, generator=torch.Generator().manual_seed(t)) for t in range(3)]
    due, replayed = ([torch.zeros(0)] * 3 for _ in range(2))
    for where, found in (("cpu", due), (DEVICE, replayed)):
        reducer, ended = cc.settle(cc.ErrorFeedback(cc.AllGather(cc.SignScale())), 1), list[bool]()
        arena, store = Arena(where), Store(reducer, 0, 1, where)
        scheduler = Scheduler(ProcessGroup(None, where), store, arena, 0, lambda _, bad, ended=ended: ended.append(bad))
        flat = torch.empty(layout.numel, device=where)

        def step(scheduler: Scheduler = scheduler, flat: Tensor = flat, reducer: cc.Reducer = reducer) -> None:
            future: Any = torch.futures.Future(devices=[flat.device] if flat.is_cuda else None)
            scheduler.finish_pending(scheduler.mark())
            bucket, began = cc.Bucket(flat, layout), Step(reducer, 1.0, True)
            scheduler.handle(Job(began, Source(bucket), Target(bucket), 0, True, future, scheduler.mark()))
            scheduler.follow()

        for t, g in enumerate(given):
            if t == 1 and flat.is_cuda:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    step()
                assert ended == [False, False], "the step before the capture was not settled, or the captured one not"
            flat.copy_(g)
            if t and flat.is_cuda:
                graph.replay()
            else:
                step()
            found[t] = flat.cpu()
    for a, b in zip(due, replayed, strict=True):
        assert device.same(a, b)


def traced(rank: int, world: int, reducer: str, where: str) -> Any:
    """(kernels as (name, stream, start, end) in microseconds) of three steps of a model with large layers."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.set_device(0)
    module = models.mlp(6, 2048).to(where)
    model, _ = models.wrap(module, cc.parse(reducer), megabytes=16)
    inputs = [torch.randn(512, 2048, device=where) for _ in range(6)]
    models.train(model, inputs[:3])
    torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the profiler's own
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            models.train(model, inputs[3:])
            torch.cuda.synchronize()
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    return [(e["name"], e["args"]["stream"], e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") == "kernel"]


def ours() -> set[str]:
    """The names of our Triton kernels, in a process of a machine with a GPU."""
    import importlib
    import pkgutil

    import triton

    import compcomm.ops.triton as package

    modules = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    return {f.__name__ for m in modules for f in vars(m).values() if isinstance(f, triton.JITFunction)}


Kernel = tuple[str, int, float, float]


def kinds(kernels: list[Kernel]) -> tuple[list[Kernel], list[Kernel]]:
    """Our kernels that begin between the first product and the last, and the products."""
    known = ours()
    coding = [k for k in kernels if k[0] in known or "compcomm" in k[0] or k[0].startswith("cc_")]
    others = [k for k in kernels if any(part in k[0].lower() for part in ("gemm", "cutlass", "nvjet"))]
    assert coding and others, sorted({k[0] for k in kernels})
    first, last = (f(o[2] for o in others) for f in (min, max))
    between = [c for c in coding if first < c[2] < last]
    assert between, "coding began only after the last product"
    return coding, others


def test_kernels_run_on_a_side_stream_while_the_backward_pass_goes_on(alone: Workers) -> None:
    coding, others = kinds(*alone.run(traced, reducer=QUANTISED, where=DEVICE))
    main = {stream for _, stream, _, _ in others}
    assert len(main) == 1
    assert main.isdisjoint(stream for _, stream, _, _ in coding), "coding runs in the backward pass's own stream"
    overlapping = [c for c in coding if any(c[2] < o[3] and o[2] < c[3] for o in others)]
    assert overlapping, "no coding kernel ran at the same time as a product"


def test_the_backward_pass_goes_on_while_gloo_waits_for_the_device(two: Workers) -> None:
    for kernels in two.run(traced, reducer=QUANTISED, where=DEVICE):
        kinds(kernels)
