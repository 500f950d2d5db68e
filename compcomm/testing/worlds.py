"""The mean: the same on every rank, whatever the buckets, and no further from the truth than declared."""

from __future__ import annotations

import torch

from ..core.layout import Bucket
from ..core.reducer import Reducer
from ..core.structure import controllers
from ..routes.choose import settle
from ..transports.simulator import Simulator
from .errors import demand, same_bits
from .inputs import gradient, model_layout
from .simulated import WORLDS, Named, backwards, gradients, pack, rebuilt, roundoff, run, step, whole
from .traffic import reduce_together


def _same(a: Named, b: Named) -> bool:
    return all(same_bits(a[n], b[n]) for n in a)


def gives_every_rank_the_same_mean(r: Reducer) -> None:
    """Bit-identical means on all ranks, in every step and for every number of ranks; finite ones."""
    for world in WORLDS:
        for t, means in enumerate(run(r, world, 4, rebuilt)):
            for rank in range(1, world):
                demand(_same(means[0], means[rank]), r, f"rank {rank} of {world} holds another mean in step {t}.")
            finite = all(m.isfinite().all() for m in means[0].values())
            demand(finite, r, f"the mean of finite gradients is not finite in step {t} ({world} ranks).")


def does_not_depend_on_how_buckets_are_cut(r: Reducer) -> None:
    """One bucket, three in reverse order, or rebuilt after the first step: the same bits where payloads are decoded in
    rank order, and within W u sum_r |x_r| (u: unit roundoff) where an all-reduce adds floats."""
    for world, cut in ((2, backwards), (3, rebuilt)):
        first, u = run(r, world, 4, whole), roundoff(r, world)
        for t, means in enumerate(run(r, world, 4, cut)):
            for n, mean in means[0].items():
                due = first[t][0][n]
                if u == 0.0:
                    demand(same_bits(due, mean), r, f"{n} differs in step {t} when buckets are {cut.__name__}.")
                else:
                    size = sum(gradient(rank, s)[n].abs() for rank in range(world) for s in range(t + 1))
                    near = (due - mean).abs() <= 4 * world * u * size
                    demand(near.all(), r, f"{n} differs by more than rounding in step {t}, {cut.__name__}.")


def loses_no_more_than_it_says(r: Reducer) -> None:
    """On every segment, |y - sent|^2 <= (1 - delta)|y|^2, delta as declared; exact segments lose nothing at all.

    Random compressors promise it of the mean only, so some slack is left: they are tested one by one elsewhere.
    """
    layout = model_layout()
    for world in (1, 3):
        settled = settle(r, world)
        inputs = [pack(g, layout) for g in gradients(world, 0)]
        results = reduce_together(settled, inputs, 1 << 20)
        for rank, (result, *_) in enumerate(results):
            if result.error is None or result.error.flat.numel() == 0:
                continue
            for s in layout.segments:
                y, left = inputs[rank].view(s).reshape(-1), result.error.flat[s.start : s.stop]
                delta = settled.promises(s).delta
                if settled.exact(s):
                    demand(not left.any(), r, f"{s.name} is called exact and leaves an error.")
                elif delta is not None:
                    found = float(left.double().square().sum() / y.double().square().sum())
                    demand(found <= (1 - delta) * 1.25 + 1e-5, r, f"{s.name} loses {found:.4g} of its square norm.")


def averages_what_it_can_send_whole(r: Reducer) -> None:
    """Segments called exact arrive as the plain mean, within rounding, in every step."""
    for world in (1, 3, 5):
        exact = [s for s in model_layout().segments if settle(r, world).exact(s)]
        for t, means in enumerate(run(r, world, 4, rebuilt)):
            for s in exact:
                parts = torch.stack([g[s.name] for g in gradients(world, t)]).double()
                near = (means[0][s.name] - parts.mean(0)).abs() <= 2.0**-22 * parts.abs().sum(0)
                demand(near.all(), r, f"{s.name} is called exact and is not the mean ({world} ranks, step {t}).")


def codes_a_sum_in_one_go(r: Reducer) -> None:
    """``reduce(x, add=g)`` is ``reduce(decay*x + add_scale*g)``: the same mean, and the same error in x.

    Reducers with a memory of their own may refuse (TypeError).
    """
    layout, world = model_layout(), 3
    settled = settle(r, world)
    x = [pack(g, layout) for g in gradients(world, 0)]
    g = [pack(g, layout) for g in gradients(world, 1)]
    y = [Bucket(a.flat * 0.9 + b.flat * 0.3, layout) for a, b in zip(x, g, strict=True)]
    try:
        found = reduce_together(settled, x, 1 << 20, add=g, decay=0.9, add_scale=0.3)
    except TypeError:
        return
    for one, two in zip(found, reduce_together(settled, y, 1 << 20), strict=True):
        same = same_bits(one.out.flat, two.out.flat)
        demand(same, r, "the mean of decay*x + add_scale*add is another than that of the sum.")
        if one.result.error is not None and two.result.error is not None:
            same = same_bits(one.result.error.flat, two.result.error.flat)
            demand(same, r, "the error of decay*x + add_scale*add is another than that of the sum.")


def averages_nodes_like_ranks(r: Reducer) -> None:
    """Two nodes of two ranks, exact inside: all ranks hold the same bits, those of two ranks that have the nodes' means
    (but for a controller, which decides for the parameters of each owner by themselves)."""
    two, flat = Simulator(r, 4, seed=17, ranks_per_node=2), Simulator(r, 2, seed=17)
    alone = not list(controllers(flat.reducer, model_layout().segments)) and roundoff(r, 2) == 0.0
    for t in range(3):
        given = gradients(4, t)
        pairs = ((given[0], given[1]), (given[2], given[3]))
        found = step(two, given, whole(t))
        due = step(flat, [{n: (a[n] + b[n]) / 2 for n in a} for a, b in pairs], whole(t))
        demand(all(_same(found[0], m) for m in found), r, f"ranks of two nodes hold unlike means in step {t}.")
        demand(not alone or _same(found[0], due[0]), r, f"two nodes have another mean than two ranks in step {t}.")


def adds_to_what_is_there(r: Reducer) -> None:
    """``out_scale`` multiplies the mean, and ``accumulate`` adds it to what ``out`` holds."""
    layout, world = model_layout(), 2
    settled = settle(r, world)
    inputs = [pack(g, layout) for g in gradients(world, 0)]
    plain = [ran.out for ran in reduce_together(settled, inputs, 5)]
    added = [ran.out for ran in reduce_together(settled, inputs, 5, fill=3.0, out_scale=0.5, accumulate=True)]
    for a, b in zip(plain, added, strict=True):
        near = (b.flat - (3.0 + 0.5 * a.flat)).abs() <= 4e-6 * (1 + a.flat.abs())
        demand(near.all(), r, "out_scale=0.5, accumulate=True does not give out + mean / 2.")


def leaves_rows_of_zeros(r: Reducer) -> None:
    """A row of a matrix whose gradient was zero on every rank, in every step so far, has a mean of exact zeros,
    whatever the other rows do; and one that gets its first gradient moves."""
    late = {"embedding": 3, "layer.weight": 63, "head": 0}
    for world in (1, 2, 3):
        simulator = Simulator(r, world, seed=17)
        moved: set[str] = set()
        for t in range(5):
            given = gradients(world, t)
            for rank, g in enumerate(given):
                for name in late:
                    g[name][5:9] = 0.0
                    g[name][late[name]] *= 100.0 * (t > 2)
                    g[name][11 + rank] = 0.0  # on this rank alone
            for name, mean in step(simulator, given, whole(t))[0].items():
                if name in late:
                    demand(
                        not mean[5:9].any(), r, f"rows of {name} without a gradient move in step {t}, {world} ranks."
                    )
                    quiet = t > 2 or not mean[late[name]].any()
                    demand(quiet, r, f"a row of {name} moves in step {t} before its first gradient, {world} ranks.")
                    moved |= {name} if t > 2 and mean[late[name]].any() else set()
        demand(bool(moved), r, f"rows do not move when they get their first gradient ({world} ranks).")
