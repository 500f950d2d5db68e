"""The feedback schemes, each over a route or two, as the hosts' tests use them. A new scheme needs one line here."""

from __future__ import annotations

import compcomm as cc

SCHEMES: dict[str, str] = {
    "EF": "ErrorFeedback(TopK(ratio=0.05))",
    "EF, two-phase": "ErrorFeedback(TwoPhase(SignScale(block=64)))",
    "EF21": "EF21(TopK(ratio=0.05))",
    "EF21, from zero": "EF21(QSGD(bits=4), momentum=0.3, start=False)",
    "EF21, two-phase": "EF21(TwoPhase(SignScale(block=64)), momentum=0.5)",
    "EControl": "EControl(TopK(ratio=0.05))",
    "EControl, two-phase": "EControl(TwoPhase(SignScale(block=64)), start=False)",
    "DGC": "DGC(TopK(ratio=0.05))",
    "DGC, unmasked": "DGC(TwoPhase(SignScale(block=64)), momentum=0.6, nesterov=True, masking=False)",
    "PowerSGD": "PowerSGD(rank=2)",
    "PowerSGD, one factor": "PowerSGD(rank=2, alternate=True, error='local')",
}
"""Name to description: what a test passes to other processes."""

CONSERVING = tuple(n for n, text in SCHEMES.items() if not text.startswith(("EF21", "EControl", "DGC")))
"""Those that lose nothing: sum of means + what is remembered = sum of mean gradients."""

SUMS = ("EF21", "EControl", "EF21, two-phase", "PowerSGD", "PowerSGD, one factor")
"""Those that sum floats by an all-reduce, which rings of three ranks or more do in another order than the simulator."""


def make(name: str) -> cc.Reducer:
    """The reducer of that name."""
    return cc.parse(SCHEMES[name])
