"""A library that is not ours is passed over."""

from __future__ import annotations

import _ctypes
import logging
from pathlib import Path

import pytest

from compcomm.ops import native


@pytest.mark.parametrize("kind", ["no library at all", "another library"])
def test_what_is_no_library_of_ours_is_refused_and_said(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "libcompcomm.so"
    path.write_bytes(b"nothing" if kind == "no library at all" else Path(_ctypes.__file__).read_bytes())
    monkeypatch.setenv("COMPCOMM_LIBRARY", str(path))
    with caplog.at_level(logging.WARNING, logger="compcomm"):
        assert native._load() is None
    first, second = (record.getMessage() for record in caplog.records)
    assert str(path) in first
    assert "rebuild it" in first
    assert "is not ours" in first or "cannot load" in first
    assert "no native library" in second
