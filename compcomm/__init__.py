"""compcomm: averages gradients between workers with far fewer bytes.

>>> import compcomm as cc
>>> cc.ErrorFeedback(cc.TopK(ratio=0.01))
ErrorFeedback(TopK(ratio=0.01))
"""

from __future__ import annotations

from typing import Any as _Any

from . import ops as ops  # registers the operators
from . import optim as optim
from . import report as report
from ._version import __version__ as __version__
from .adaptive.accordion import Accordion
from .adaptive.by_size import SizeRule
from .adaptive.global_topk import GlobalTopK
from .adaptive.lgreco import LGreCo
from .combine.partition import Partition
from .combine.schedules import Geometric, Linear, Steps
from .combine.uncompensated import Uncompensated
from .combine.warmup import Warmup
from .compressors.block_randk import BlockRandK
from .compressors.block_topk import BlockTopK
from .compressors.cast import Cast
from .compressors.chunked_topk import ChunkedTopK
from .compressors.contractive import Contractive
from .compressors.contractive import contractive as _contractive
from .compressors.grid import Grid
from .compressors.lloyd_max import LloydMax
from .compressors.minmax import MinMax
from .compressors.natural import Natural
from .compressors.qsgd import QSGD
from .compressors.randk import RandK
from .compressors.rotated import Rotated
from .compressors.sign import SignScale
from .compressors.sketch import Sketch
from .compressors.terngrad import TernGrad
from .compressors.threshold import Threshold
from .compressors.topk import TopK
from .compressors.two_means import TwoMeans
from .compressors.unproven import Unproven
from .core.compressor import Compressor, Payload
from .core.context import Context
from .core.description import parse
from .core.former import METHODS as _METHODS
from .core.former import former as _former
from .core.header import PeerError
from .core.layout import Bucket, Layout, Segment
from .core.random import Rng
from .core.reducer import Reduced, Reducer
from .core.renamed import install as _install
from .core.renamed import moved as __getattr__  # noqa: F401
from .core.source import Source, Target
from .core.state import (
    Merge,
    Slot,
    StateError,
    Store,
)
from .engine.attachment import Attachment
from .feedback.dgc import DGC
from .feedback.econtrol import EControl
from .feedback.ef21 import EF21
from .feedback.error_feedback import ErrorFeedback
from .feedback.smoothness import smoothness, smoothness_weights
from .hosts.attach import attach
from .hosts.auto import Auto
from .hosts.auto import AutoController as _AutoController
from .hosts.ddp import DDPState, ddp_hook
from .hosts.fsdp1 import FSDPState, fsdp_hook
from .hosts.functions import all_gather, all_reduce, reduce_scatter
from .hosts.mesh import mesh
from .routes.all_gather import AllGather
from .routes.all_reduce import AllReduce
from .routes.choose import settle
from .routes.exact import Exact
from .routes.powersgd import PowerSGD
from .routes.shared_scale import SharedScale
from .routes.sparse_all_reduce import SparseAllReduce
from .routes.two_phase import TwoPhase
from .state import checkpoint as checkpoint
from .transports.dry_run import cost
from .transports.simulator import Simulator

_install()
_former("cost", "compcomm.cost(reducer, layout, world)", cost, Reducer, Compressor)
_former("settle", "compcomm.settle(reducer, world)", settle, Reducer)
for _name, (_now, _call) in _METHODS.items():
    _former(_name, _now, _call, Reducer)
_former("forget", "reset_state()", Attachment.reset_state, Attachment)
_former("contractive", "compcomm.compressors.contractive.contractive(compressor)", _contractive, Compressor)


def _planner(*arguments: _Any, **options: _Any) -> _Any:
    """For ``Auto``: the planner is loaded when something is to be picked, not by ``import compcomm``."""
    from .plan.in_run import propose

    return propose(*arguments, **options)


_AutoController.planner = staticmethod(_planner)

__all__ = [
    "DGC",
    "EF21",
    "QSGD",
    "Accordion",
    "AllGather",
    "AllReduce",
    "Attachment",
    "Auto",
    "BlockRandK",
    "BlockTopK",
    "Bucket",
    "Cast",
    "ChunkedTopK",
    "Compressor",
    "Context",
    "Contractive",
    "DDPState",
    "EControl",
    "ErrorFeedback",
    "Exact",
    "FSDPState",
    "Geometric",
    "GlobalTopK",
    "Grid",
    "LGreCo",
    "Layout",
    "Linear",
    "LloydMax",
    "Merge",
    "MinMax",
    "Natural",
    "Partition",
    "Payload",
    "PeerError",
    "PowerSGD",
    "RandK",
    "Reduced",
    "Reducer",
    "Rng",
    "Rotated",
    "Segment",
    "SharedScale",
    "SignScale",
    "Simulator",
    "SizeRule",
    "Sketch",
    "Slot",
    "Source",
    "SparseAllReduce",
    "StateError",
    "Steps",
    "Store",
    "Target",
    "TernGrad",
    "Threshold",
    "TopK",
    "TwoMeans",
    "TwoPhase",
    "Uncompensated",
    "Unproven",
    "Warmup",
    "all_gather",
    "all_reduce",
    "attach",
    "cost",
    "ddp_hook",
    "fsdp_hook",
    "mesh",
    "parse",
    "reduce_scatter",
    "settle",
    "smoothness",
    "smoothness_weights",
]
