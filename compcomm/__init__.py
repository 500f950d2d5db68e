"""compcomm: averages gradients between workers with far fewer bytes.

>>> import compcomm as cc
>>> cc.ErrorFeedback(cc.TopK(ratio=0.01))
ErrorFeedback(TopK(ratio=0.01))
"""

from __future__ import annotations

from . import ops as ops  # registers the operators
from . import optim as optim
from . import report as report
from ._version import __version__ as __version__
from .adaptive.accordion import Accordion
from .adaptive.by_size import Legacy
from .adaptive.global_topk import GlobalTopK
from .adaptive.lgreco import LGreCo
from .combine.partition import Partition
from .combine.schedules import Geometric, Linear, Steps
from .combine.uncompensated import Uncompensated
from .combine.warmup import Warmup
from .compressors.cast import Cast
from .compressors.contractive import Contractive
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
from .core.description import parse
from .core.layout import Bucket, Layout, Segment
from .core.packing import PeerError
from .core.random import Rng
from .core.reducer import (
    Context,
    Reduced,
    Reducer,
    settle,
)
from .core.renamed import install as _install
from .core.renamed import moved as __getattr__  # noqa: F401
from .core.source import Source, Target
from .core.state import (
    Merge,
    Slot,
    StateError,
    Store,
)
from .engine.session import Attachment
from .feedback.dgc import DGC
from .feedback.econtrol import EControl
from .feedback.ef21 import EF21
from .feedback.error_feedback import ErrorFeedback
from .feedback.smoothness import smoothness, smoothness_weights
from .hosts.attach import attach
from .hosts.auto import Auto
from .hosts.ddp import DDPState, ddp_hook
from .routes.all_gather import AllGather
from .routes.all_reduce import AllReduce
from .routes.exact import Exact
from .routes.powersgd import PowerSGD
from .routes.shared_scale import SharedScale
from .routes.sparse_all_reduce import SparseAllReduce
from .routes.two_phase import TwoPhase
from .state import checkpoint as checkpoint
from .transports.dry_run import cost
from .transports.simulator import Simulator

_install()

__all__ = [
    "DGC",
    "EF21",
    "QSGD",
    "Accordion",
    "AllGather",
    "AllReduce",
    "Attachment",
    "Auto",
    "Bucket",
    "Cast",
    "Compressor",
    "Context",
    "Contractive",
    "DDPState",
    "EControl",
    "ErrorFeedback",
    "Exact",
    "Geometric",
    "GlobalTopK",
    "Grid",
    "LGreCo",
    "Layout",
    "Legacy",
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
    "attach",
    "cost",
    "ddp_hook",
    "parse",
    "settle",
    "smoothness",
    "smoothness_weights",
]
