"""Work lists, checks and kept tables: those of ``ops/work.py``, which CUDA C++ shares."""

from __future__ import annotations

from ..work import Work as Work
from ..work import aligned as aligned
from ..work import check_decode as check_decode
from ..work import check_encode as check_encode
from ..work import kept as kept
from ..work import on as on
from ..work import tiles as tiles
from ..work import words as words
