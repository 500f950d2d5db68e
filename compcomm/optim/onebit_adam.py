"""OneBitAdam: Adam until its variance is known, then momentum SGD preconditioned by it, with coded momentum."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

from ..compressors.sign import SignScale
from ..core.compressor import Compressor, ops
from ..core.reducer import Reducer
from ..routes.exact import Exact
from .flat import Batch, Part
from .frozen_variance import FrozenVariance
from .variance import divisor, factor, thaw


class OneBitAdam(FrozenVariance):
    """``optimizer = cc.optim.OneBitAdam(ddp_model, lr=1e-3)`` in place of ``torch.optim.Adam(...)``.

    Warm-up, g the mean gradient (averaged by DDP's backward pass through ``warmup``, or in ``step``):

        m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  x <- x - lr (m/(sqrt v + eps) + decay x)

    After ``freeze`` steps v stays as it is, gradients are no longer averaged, and in each step

        m_i <- b1 m + (1 - b1) g_i on rank i;  m <- mean of m_i, compressed;  x <- x - lr (m/(sqrt v + eps) + decay x)

    The mean is ``ErrorFeedback(compressor)`` by the route that fits the number of ranks: two-phase with residuals of
    workers and owners, between two ranks an all-gather (the same bytes, one round, no second loss). All parameters lie
    in flat vectors and travel in buckets of 16 MiB, pipelined: while one is coded, others are on the wire. With
    ``SignScale()`` 1.06 bits per element; 1-D and small parameters travel exact. Invariant:
    sum of m + mean residual + owners' residuals = sum of mean m_i. m and x are bit-identical on all ranks.

    Args:
        model_or_params: a DDP model (its one hook is taken), a model, parameters, or groups.
        lr, betas, eps, weight_decay: as in ``torch.optim.AdamW``, per group if wanted.
        freeze: steps of warm-up, or "auto": until the variance is stable (see ``compcomm.optim.freeze``), with
            ``betas[1]`` = 0.999 some 3,800 steps at least. Either way not while the learning rate rises. A number
            beyond the end of the run means Adam throughout.
        v_floor: at the freeze sqrt(v) is raised to at least ``v_floor`` times its root mean square over the parameter;
            where a parameter's v is all zero, to the root mean square over all parameters. The published code has no
            floor, and diverges where some elements had next to no gradient: their sign is sent at the size of the
            others, and divided by nearly nothing. An MLP on handwritten digits, whose dark pixels are such elements,
            ends in NaN with 0 and 0.001, learns with 0.01, and follows Adam with 0.1 to 0.3. ``v_floor=0`` is the
            published formula.
        bias_correction: divide m by 1 - b1^t and v by 1 - b2^t, as Adam does; the second stops at the freeze. The
            published code does not (default), so its first steps are (1 - b1^t)/sqrt(1 - b2^t) times Adam's: 3 to 7
            times with the default betas. A rate that rises from zero makes up for it.
        compressor: any compressor or route; ``ErrorFeedback`` goes around it, once: give that yourself where it is to
            have options, ``ErrorFeedback(SignScale(), dtype=torch.bfloat16)``. ``SignScale(scale="l2")``, the published
            scale, is taken too: it is no contraction, so nothing bounds its residual on sparse momentum (``Unproven``).
        warmup: how gradients are averaged at first: ``Exact()`` in their own precision, or ``Cast(torch.bfloat16)``,
            half of fp32's bytes. Nothing that keeps a residual.
        params: groups over the parameters of a DDP model; default: one group.
        decoupled_weight_decay: decay as above (as in the published code and AdamW). False: decay * x is added to the
            gradient, as in ``torch.optim.Adam``.
        group, timeout, seed: see ``attach``. Without DDP and process group it runs alone, uncompressed.
        maximize: as in ``torch.optim.Adam``. ``foreach`` and ``fused`` are taken and mean nothing: updates are one
            kernel per batch of parameters, whatever they say.

    Clipping: after the warm-up ``clip_grad_norm_`` sees each rank's own gradient, and each rank clips by its own norm.
    Every rank calls ``step()`` as often as the others.
    Learning rates may change at any time: what is kept is momentum, not steps.

    Raises:
        TypeError, ValueError: an argument cannot be; ``amsgrad`` (its maximum of v ends with v); sharded or sparse
            parameters; a DDP model with another hook. ``AgreementError`` where the ranks differ.

    State, bytes per element: m 4, v 4, the residual 4 (and 4 per element owned), and 4 for the momentum under way, made
    when it is needed (without DDP in the first step). In fp32 whatever the parameters are. Kernels are in C++ and in
    Triton; those of GPUs are tested to the bit and not yet measured.

    Checkpoints: ``torch.optim.AdamW`` (Adam) takes those of this optimizer and goes on from the same moments and step
    with bias correction; after the freeze "exp_avg_sq" is the frozen variance, with its floor. This one takes those of
    Adam and AdamW, and goes on warming up from them: their steps count as steps of the warm-up. With
    ``bias_correction`` it then steps as they would; without, the moments are taken as they are after Adam's correction,
    so that the next step is as long as Adam's.

    Source: Tang et al. 2021 (arXiv:2102.02888), Algorithm 1, and its published code for what that leaves open.
    """

    TAKES_ADAM = True

    def __init__(
        self,
        model_or_params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        freeze: int | str = "auto",
        v_floor: float = 0.1,
        bias_correction: bool = False,
        compressor: Compressor | Reducer = SignScale(),  # noqa: B008  (frozen)
        warmup: Compressor | Reducer = Exact(),  # noqa: B008  (frozen)
        params: Any = None,
        decoupled_weight_decay: bool = True,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        group: dist.ProcessGroup | None = None,
        timeout: timedelta | float | None = None,
        seed: int = 0,
    ) -> None:
        self.bias_correction = bias_correction
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad,
            "maximize": maximize, "decoupled_weight_decay": decoupled_weight_decay,
        }  # fmt: skip
        super().__init__(
            model_or_params, defaults, freeze=freeze, v_floor=v_floor, facts={"bias_correction": bias_correction},
            check=lambda: None, params=params, compressor=compressor, warmup=warmup, group=group, timeout=timeout,
            seed=seed,
        )  # fmt: skip

    def _adapt(self, has_gradient: list[bool], mean: Tensor | None, scale: float) -> None:
        if mean is not None:
            self._average(self.dense, mean, lambda _: None)
        for part in self.flat.parts:
            self._adam(part.pick(has_gradient), mean, scale)

    def _adam(self, part: Part, mean: Tensor | None, scale: float) -> None:
        """``mean``: a flat vector with the averaged gradients; None: they are in the parameters."""
        if not part.params:
            return
        group = self.param_groups[part.group]
        rate, correction = self._corrected(group, self.steps + 1)
        decay, l2 = self._decay(group)
        grads = self._grads(part) if mean is None else self._found(part, mean)
        sign = -scale if group["maximize"] and mean is None else scale
        b1, b2 = map(float, group["betas"])
        ops.adam(
            part.lying(part.params), grads, part.starts, self._mean, self._second,
            b1, b2, sign, rate, correction, float(group["eps"]), decay, l2,
        )  # fmt: skip

    def _arrived(self, batch: Batch, has_gradient: list[bool], new: Tensor) -> None:
        for part in batch.parts:
            part = part.pick(has_gradient)
            group = self.param_groups[part.group]
            if part.params:
                ops.descend(
                    part.lying(part.params), part.starts, new, self._second,
                    self._corrected(group, self.steps + 1)[0], self._decay(group)[0],
                )  # fmt: skip

    # Checkpoints.

    def vectors(self) -> dict[str, Tensor]:
        if not self.compressed:
            return {"exp_avg": self._mean, "exp_avg_sq": self._second}
        variance = thaw(self.flat, self._second, self._factors())
        return {"exp_avg": self._mean, "exp_avg_sq": variance, "denominator": self._second}

    def _factors(self) -> list[tuple[float, float]]:
        """(factor, eps) of each group, for ``thaw``."""
        n = self.frozen_at or 0
        return [
            (factor(float(g["betas"][1]), n, self.steps, self._corrected(g, n)[1]), float(g["eps"]))
            for g in self.param_groups
        ]

    def load(self, vectors: dict[str, Tensor], own: Mapping[str, list[Tensor]], extra: Mapping[str, Any]) -> None:
        was = self._take(extra)
        self._mean = vectors["exp_avg"]
        if not self.compressed:
            self._second = vectors["exp_avg_sq"]
        else:
            found = vectors.get("denominator")
            self._second = divisor(self.flat, vectors["exp_avg_sq"], self._factors()) if found is None else found
        self._go_on(was, extra["averaged"])

    def absorb(self, residual: Tensor) -> None:
        for part in self.flat.parts:
            beta = float(self.param_groups[part.group]["betas"][0])
            for n in part.numbers:  # the next m is b1 m + ..., so that the residual arrives there whole
                self.flat.view(self._mean, n).add_(self.flat.view(residual, n), alpha=1.0 / beta)
