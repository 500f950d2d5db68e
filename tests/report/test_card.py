"""The card's counter: the right card, and bytes that really went."""

from __future__ import annotations

import socket

import pytest

from compcomm.report.network_card import default_interface, transmitted


def test_counts_what_went_over_loopback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as out:
        inward, _ = server.accept()
        before = transmitted("lo")
        out.sendall(bytes(100_000))
        left = 100_000
        while left:
            left -= len(inward.recv(left))
        inward.close()
        assert transmitted("lo") - before >= 100_000


def test_environment_names_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo,eth7")
    assert default_interface() == "lo"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    assert transmitted(default_interface()) >= 0


def test_unknown_card_names_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"transmitted\('nocard'\): this host has no card 'nocard'\. Name one of .*lo"):
        transmitted("nocard")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nocard")
    with pytest.raises(ValueError, match=r"no card 'nocard' \(from GLOO_SOCKET_IFNAME\)"):
        transmitted()
