"""The methods that a plan compares, from the least that they lose to the most."""

from __future__ import annotations

from typing import NamedTuple

from ..core.compressor import Compressor
from ..core.description import parse
from ..core.reducer import Reducer
from ..routes.choose import settle


class Method(NamedTuple):
    """A description; ``reducer`` None is DDP without a hook. ``short``: how tables and plots call it."""

    text: str
    reducer: Reducer | Compressor | None
    short: str

    def resolved(self, world: int, rows: bool = False) -> Reducer | None:
        """With its routes chosen for ``world`` ranks; ``rows``: of which each wants its own row of the mean alone."""
        return None if self.reducer is None else settle(self.reducer, world, rows=rows)


PLAIN = Method("DDP", None, "DDP without a hook")
_DEFAULT = {
    "Exact()": "Exact",
    "Cast(bfloat16)": "Cast(bfloat16)",
    "ErrorFeedback(QSGD(bits=4, rounding='nearest'))": "QSGD(bits=4) + feedback",
    "PowerSGD(rank=4)": "PowerSGD(4)",
    "ErrorFeedback(SignScale())": "SignScale + feedback",
    "ErrorFeedback(TopK(ratio=0.01))": "TopK(0.01) + feedback",
    "ErrorFeedback(SparseAllReduce(TopK(ratio=0.01)))": "SparseAllReduce(TopK(0.01)) + feedback",
}
_SHARDED = {
    "Exact()": "Exact",
    "Cast(bfloat16)": "Cast(bfloat16)",
    "Rotated(LloydMax(4))": "Rotated(LloydMax(4))",
    "ErrorFeedback(QSGD(bits=4, rounding='nearest'), dtype=int8)": "QSGD(bits=4) + int8 feedback",
    "ErrorFeedback(SignScale(), dtype=int8)": "SignScale + int8 feedback",
}
"""For ranks that hold a shard each, where a residual in fp32 is as large as the whole model."""
POLICY = "fully_shard(..., mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))"
HALF = Method("fully_shard in bfloat16", None, "fully_shard in bfloat16")
"""What ``POLICY`` does without a hook: weights and gradients travel in two bytes each."""


class Baselines(NamedTuple):
    """What a method must beat: texts of those that send 32 and 16 bits of everything."""

    fp32: tuple[str, ...]
    bf16: tuple[str, ...]


UNCOMPRESSED = Baselines(("DDP", "Exact()"), ("Cast(bfloat16)",))


def method(given: str | Reducer | Compressor) -> Method:
    """A method from a description, or from its text.

    Raises:
        ValueError: the text is no description.
    """
    made = parse(given) if isinstance(given, str) else given
    if not isinstance(made, Reducer | Compressor):
        raise ValueError(f"method({given!r}): that is {type(made).__name__}. Give a reducer, as in TopK(ratio=0.01).")
    text = repr(made)
    return Method(text, made, {**_SHARDED, **_DEFAULT}.get(text, text))


def sharded(exact: bool = True) -> tuple[Method, ...]:
    """``fully_shard`` without a hook, in fp32 and in bfloat16, and five reducers; ``exact``: whether with ``Exact()``,
    which under ``POLICY`` does what that does alone."""
    found = map(method, _SHARDED if exact else [text for text in _SHARDED if text != "Exact()"])
    return (PLAIN._replace(short="fully_shard without a hook"), HALF, *found)


def default() -> tuple[Method, ...]:
    """DDP without a hook, and seven reducers.

    ``RandK`` is not among them: its steps are the shortest wherever bytes count, and it needs the most of them.
    """
    return (PLAIN, *map(method, _DEFAULT))
