"""Which compcomm, torch and Python a run had, and on what."""

from __future__ import annotations

import os
import platform
from typing import Any


def about() -> dict[str, Any]:
    """Versions, processor and cores, ready for JSON."""
    import torch

    from .._version import __version__

    return {
        "compcomm": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
    }
