"""launch/netlab with several ranks in a host: they share its card, and what they send each other does not pass it."""

from __future__ import annotations

import json
import re

import pytest

from tests.launch.labs import CARD, ends, lab, netlab

pytestmark = pytest.mark.timeout(60)


@lab
class TestRanksPerHost:
    def test_environment(self) -> None:
        script = (
            "import os, json, socket\n"
            "spaces = [os.readlink('/proc/self/ns/' + kind) for kind in ('net', 'mnt')]\n"
            "print(json.dumps([dict(os.environ), socket.gethostname(), spaces]))"
        )
        done = netlab("--hosts", "2", "--ranks-per-host", "2", script=script)
        assert done.returncode == 0, done.stderr
        assert "netlab: 2 hosts of 2 ranks, 1gbit links" in done.stderr
        found = {line[:3]: json.loads(line[4:]) for line in done.stdout.splitlines()}
        assert set(found) == {"[0]", "[1]", "[2]", "[3]"}
        for rank in range(4):
            environment, name, _ = found[f"[{rank}]"]
            expected = {
                "RANK": str(rank),
                "WORLD_SIZE": "4",
                "LOCAL_RANK": str(rank % 2),
                "LOCAL_WORLD_SIZE": "2",
                "GROUP_RANK": str(rank // 2),
                "GROUP_WORLD_SIZE": "2",
                "MASTER_ADDR": "10.77.0.1",
                "GLOO_SOCKET_IFNAME": "eth0",
            }
            assert expected.items() <= environment.items()
            assert name == f"host{rank // 2}"
            note = json.loads(environment["NETLAB"])
            assert (note["hosts"], note["ranks_per_host"]) == (2, 2)
        spaces = [found[f"[{rank}]"][2] for rank in range(4)]
        assert spaces[0] == spaces[1]
        assert spaces[2] == spaces[3]
        assert not set(spaces[0]) & set(spaces[2])

    def test_the_card_counts_what_leaves_the_host(self) -> None:
        """Rank 0 sends to rank 1, in its own host, and to rank 2, in the other; all use the addresses of eth0."""
        script = (
            "import os, runpy, socket, time\n"
            f"transmitted = runpy.run_path({CARD!r})['transmitted']\n"
            "rank, own = os.environ['RANK'], f\"10.77.0.{int(os.environ['GROUP_RANK']) + 1}\"\n"
            "if rank == '0':\n"
            "    server = socket.create_server((own, 5000)); peers = [server.accept()[0] for _ in range(2)]\n"
            "    for name, peer in sorted((peer.recv(1), peer) for peer in peers):\n"
            "        before = transmitted('eth0'), transmitted('lo')\n"
            "        peer.sendall(bytes(500_000)); peer.recv(1)\n"
            "        print('to', int(name), transmitted('eth0') - before[0], transmitted('lo') - before[1])\n"
            "elif rank != '3':\n"
            "    while (peer := socket.socket()).bind((own, 0)) or peer.connect_ex(('10.77.0.1', 5000)):\n"
            "        time.sleep(0.02)\n"
            "    peer.sendall(rank.encode()); left = 500_000\n"
            "    while left: left -= len(peer.recv(1 << 20))\n"
            "    peer.sendall(b'!'); peer.recv(1)\n"
        )
        done = netlab("--ranks-per-host", "2", script=script)
        assert done.returncode == 0, done.stderr
        counts = {peer: (int(a), int(b)) for peer, a, b in re.findall(r"\[0\] to (\d) (\d+) (\d+)", done.stdout)}
        (inside, loopback), (outside, rest) = counts["1"], counts["2"]
        assert inside < 5000 < 500_000 <= loopback, counts
        assert 500_000 <= outside < 500_000 * 1.06, counts
        assert rest < 5000, counts

    def test_a_rank_that_fails_ends_those_of_all_hosts(self) -> None:
        done = ends("--ranks-per-host", "2", "--grace", "0.3", rank=3)
        assert sorted(done.stdout.splitlines()) == [f"[{rank}] asked to end" for rank in range(3)]
        assert "netlab: rank 3 ended with exit code 7" in done.stderr
