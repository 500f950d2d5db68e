"""How long a test waits before it calls something hung: longer where others use the machine too.

Only for what must end some time. How long something takes is no test's affair here: what is timed is marked ``full``.
"""

from __future__ import annotations

import os


def patience(seconds: float) -> float:
    """``seconds`` on an idle machine, and as many times more as programs share each of its cores."""
    return seconds * max(1.0, 2.0 * os.getloadavg()[0] / (os.cpu_count() or 1))
