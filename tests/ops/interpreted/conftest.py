"""Without a compiler there are no CUDA kernels for the host: their own files are not collected."""

from __future__ import annotations

from tests.ops.interpreted.agreement import in_cuda

collect_ignore_glob = [] if in_cuda() else ["test_cuda_*.py"]
