"""What a run is, beside its steps: run.json."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..engine.statistics import noun

if TYPE_CHECKING:
    from ..engine.attachment import Attachment

RUN = "run.json"


def write(folder: Path, attachment: Attachment | None) -> None:
    """Versions, hardware, the reducer, the number of ranks, parameters with their sizes. The file is whole, the old one
    or the new."""
    from ..core.about import about

    known = {**about(), "accelerator": torch.cuda.get_device_name() if torch.cuda.is_initialized() else None}
    if attachment is not None:
        known |= {
            "reducer": repr(attachment.reducer),
            "tunable": noun(attachment.reducer),
            "world": attachment.wire.world,
            "parameters": attachment.elements,
        }
    fresh = folder / f"{RUN}.part"
    fresh.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, folder / RUN)


def read(folder: Path) -> Mapping[str, Any]:
    """What ``write`` wrote; empty where it did not.

    Raises:
        ValueError: the file holds something else.
    """
    path = folder / RUN
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"report: {path} is not what a Recorder writes. Remove it: steps are drawn without it.")
    return found  # pyright: ignore[reportUnknownVariableType]
