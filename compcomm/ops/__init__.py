"""The arithmetic that touches every gradient element, as ``torch.ops.compcomm.*``.

Every op mutates its arguments, allocates nothing on the native path and treats a whole bucket in one call (the table
of rows is described in ``reference/rows.py``). Results are equal bit for bit on every backend.
"""

from __future__ import annotations

# Importing a module registers its ops.
from . import adam as adam
from . import codebook as codebook
from . import dense as dense
from . import elias as elias
from . import float8 as float8
from . import hadamard as hadamard
from . import header as header
from . import interleave as interleave
from . import lowrank as lowrank
from . import magnitude_stats as magnitude_stats
from . import masked as masked
from . import minmax as minmax
from . import native as native
from . import natural as natural
from . import reencode as reencode
from . import segment_ops as segment_ops
from . import shared_scale as shared_scale
from . import sketch as sketch
from . import sparse as sparse
from . import ternary as ternary
from . import turn as turn
from . import two_means as two_means
from . import variable_length as variable_length
from . import zero_rows as zero_rows
from .schema import backend as backend
from .schema import current_backend as current_backend
