"""The ops as CUDA C++ kernels (``csrc/cuda``): one module per family, beside the reference modules.

Importing this package loads the library, if there is one, and enters the kernels in ``KERNELS``. They follow the rules
of the Triton kernels: a whole bucket in one launch, nothing allocated on the hot path, no waiting for the device.
``COMPCOMM_CUDA_LIBRARY`` names another library file, such as one that was compiled for the host: it takes CPU tensors.
"""

from __future__ import annotations

# Importing a module registers its kernels.
from . import dense as dense
from . import reencode as reencode
from . import topk as topk
from .library import EMULATED as EMULATED
from .library import KERNELS as KERNELS
from .library import missing as missing
