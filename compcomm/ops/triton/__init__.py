"""The ops as Triton kernels: one module per format, beside the reference module of the same name.

Importing this package enters them in ``KERNELS``. A kernel treats a whole bucket in one launch: a program per tile of a
row, by the lists of ``work.py``. It allocates nothing on the hot path and never waits for the device. With
``TRITON_INTERPRET=1`` set before the import, kernels run on CPU tensors in Triton's interpreter.
"""

from __future__ import annotations

# Importing a module registers its kernels.
from . import dense as dense
from . import sign as sign
from .launch import INTERPRETED as INTERPRETED
from .registry import KERNELS as KERNELS
