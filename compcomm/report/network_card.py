"""What the network card has sent: the count that no library can talk away.

A compressor's own count leaves out headers, padding, retransmissions and whatever else travels beside the payload.
The kernel counts every byte that a card is given, so `transmitted()` before and after an exchange gives the bytes that
really left this host: payload, TCP and IP headers (about 0.2 % with segmentation offload, 4.6 % without), and what
other programs on the host sent meanwhile. A card is the host's: with several ranks per host its count is the sum over
them, of what leaves the host; what they send each other goes over `lo`, even by the card's own address. Under
`launch/netlab` each host has a card of its own. On loopback all ranks share `lo`.
"""

from __future__ import annotations

import os
from pathlib import Path

# Both files are those of this process's network namespace. /sys shows the namespace of whoever mounted it, which may
# be another one with a card of the same name.
_CARDS = Path("/proc/self/net/dev")
_ROUTES = Path("/proc/self/net/route")
_TRANSMITTED = 8  # column of "bytes" in the transmit half of a line of /proc/net/dev
_UP_GATEWAY = 0x3  # RTF_UP | RTF_GATEWAY of linux/route.h


def default_interface() -> str:
    """The card that collectives use, by name.

    In this order: the first name in `GLOO_SOCKET_IFNAME`; the card of the default route; the loopback `"lo"`.
    """
    named = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0].strip()
    if named:
        return named
    try:
        rows = [line.split() for line in _ROUTES.read_text().splitlines()[1:]]
    except OSError:
        rows = []
    for card, destination, _, flags, *_ in rows:
        if destination == "00000000" and int(flags, 16) & _UP_GATEWAY:
            return card
    return "lo"


def transmitted(interface: str | None = None) -> int:
    """Bytes that `interface` of this host has sent since it exists, as the kernel counts them.

    `None` means `default_interface()`. Take differences: the count starts before this process does.

    Raises `ValueError` for a card that this host lacks, `OSError` where there is no /proc/net/dev (Linux has it).

    >>> before = transmitted("lo")
    >>> transmitted("lo") >= before >= 0
    True
    """
    name = default_interface() if interface is None else interface
    counts: dict[str, int] = {}
    for line in _CARDS.read_text().splitlines()[2:]:
        card, _, columns = line.partition(":")
        counts[card.strip()] = int(columns.split()[_TRANSMITTED])
    if name not in counts:
        source = " (from GLOO_SOCKET_IFNAME)" if interface is None else ""
        known = ", ".join(sorted(counts))
        raise ValueError(f"transmitted({interface!r}): this host has no card {name!r}{source}. Name one of {known}.")
    return counts[name]
