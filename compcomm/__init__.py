"""compcomm: averages gradients between workers with far fewer bytes.

>>> import compcomm as cc
>>> cc.ErrorFeedback(cc.TopK(ratio=0.01))
ErrorFeedback(TopK(ratio=0.01))
"""

from __future__ import annotations

from . import checkpoint as checkpoint
from . import ops as ops  # registers the operators
from . import optim as optim
from . import report as report
from .adaptive.accordion import Accordion
from .adaptive.global_topk import GlobalTopK
from .adaptive.legacy import Legacy
from .adaptive.lgreco import LGreCo
from .adaptive.schedules import Geometric, Linear, Steps
from .bucket import Bucket, Layout, Segment
from .compressor import Compressor, Payload
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
from .feedback.dgc import DGC
from .feedback.econtrol import EControl
from .feedback.ef21 import EF21
from .feedback.error_feedback import ErrorFeedback
from .feedback.smoothness import smoothness, smoothness_weights
from .feedback.uncompensated import Uncompensated
from .hooks.attach import attach
from .hooks.attachment import Attachment
from .hooks.auto import Auto
from .hooks.ddp import DDPState, ddp_hook
from .reducer import Context, Reduced, Reducer, settle
from .reducers.all_gather import AllGather
from .reducers.all_reduce import AllReduce
from .reducers.exact import Exact
from .reducers.partition import Partition
from .reducers.powersgd import PowerSGD
from .reducers.shared_scale import SharedScale
from .reducers.sparse_all_reduce import SparseAllReduce
from .reducers.two_phase import TwoPhase
from .reducers.warmup import Warmup
from .rng import Rng
from .spec import parse
from .store import Merge, Slot, StateError, Store
from .transports.dry_run import cost
from .transports.simulate import Simulator
from .wire import PeerError

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
    "SparseAllReduce",
    "StateError",
    "Steps",
    "Store",
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

__version__ = "0.1.0"
