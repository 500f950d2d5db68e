"""Scratch memory: kept where that is safe, and other memory where it is not."""

from __future__ import annotations

from threading import Thread

import pytest
import torch
from torch import Tensor

from compcomm.ops import scratch as module
from compcomm.ops.scratch import scratch


def test_memory_is_kept_and_grows() -> None:
    first = scratch("test", 100)
    assert scratch("test", 40).data_ptr() == first.data_ptr()
    assert scratch("test", 100, torch.int32).data_ptr() != first.data_ptr() != scratch("another", 100).data_ptr()
    assert scratch("test", 200).numel() == 200


def test_streams_and_threads_do_not_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of one stream may still read what was left there when the host asks for the next."""
    found: dict[int, Tensor] = {}
    for number in (1, 2, 1):
        monkeypatch.setattr(module, "stream", lambda device, number=number: number)
        held = scratch("test of streams", 100)
        assert found.setdefault(number, held).data_ptr() == held.data_ptr()
    assert found[1].data_ptr() != found[2].data_ptr()
    other: list[Tensor] = []
    thread = Thread(target=lambda: other.append(scratch("test of streams", 100)))
    thread.start()
    thread.join()
    assert other[0].data_ptr() not in {held.data_ptr() for held in found.values()}
