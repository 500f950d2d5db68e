"""Errors that a device tells of later."""

from __future__ import annotations

import pytest
import torch

from compcomm.core.deferred import Asked, DeferredError


def error(word: int) -> Exception:
    return ValueError(f"word {word}")


def test_what_was_asked_is_raised_once() -> None:
    asked = Asked()
    asked.look()
    asked.ask([])
    asked.ask([DeferredError(torch.tensor([0]), error), DeferredError(torch.tensor([7]), error)])
    with pytest.raises(ValueError, match="word 7"):
        asked.look()
    asked.look()


def test_what_a_device_has_not_said_is_waited_for_by_nobody() -> None:
    class Event:
        fired = False

        def query(self) -> bool:
            return self.fired

    asked, event, words = Asked(), Event(), torch.tensor([0])
    asked._pending.append(([DeferredError(words, error)], words, event))
    asked.look()
    words[0], event.fired = 3, True
    with pytest.raises(ValueError, match="word 3"):
        asked.look()
