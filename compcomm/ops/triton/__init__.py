"""The ops as Triton kernels: one module per format, beside the reference module of the same name.

Rare formats have none (Elias codes, sketches, fitted thresholds, ternary, two means): ``gpu.py`` says what runs there.

Importing this package enters them in ``KERNELS``. A kernel treats a whole bucket in one launch: a program per tile of a
row, by the lists of ``work.py``. It allocates nothing on the hot path and never waits for the device. With
``TRITON_INTERPRET=1`` set before the import, kernels run on CPU tensors in Triton's interpreter.
"""

from __future__ import annotations

# Importing a module registers its kernels.
from . import adam as adam
from . import codebook as codebook
from . import dense as dense
from . import float8 as float8
from . import hadamard as hadamard
from . import header as header
from . import interleave as interleave
from . import lowrank as lowrank
from . import lowrank_factor as lowrank_factor
from . import masked as masked
from . import minmax as minmax
from . import natural as natural
from . import natural_dither as natural_dither
from . import norms as norms
from . import qsgd as qsgd
from . import randk as randk
from . import reencode as reencode
from . import sampled as sampled
from . import segment_ops as segment_ops
from . import shared_scale as shared_scale
from . import sign as sign
from . import topk as topk
from . import topk_decode as topk_decode
from . import turn as turn
from . import zero_rows as zero_rows
from .launch import INTERPRETED as INTERPRETED
from .registry import KERNELS as KERNELS
