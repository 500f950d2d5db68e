"""launch/netlab: hosts that are separate, links that are as slow as they say, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.labs import CARD, CHECK, NETLAB, ends, lab, netlab
from tests.patience import patience

pytestmark = pytest.mark.timeout(60)


def processes_with(mark: str) -> list[str]:
    """Command lines on this machine, in whatever namespace, that carry `mark`."""
    found: list[str] = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if mark in line:
            found.append(line)
    return found


def gone(mark: str, seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while processes_with(mark):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


# Rank 0 sends to rank 1, three times each size after a rest; rank 1 prints the megabits per second of payload.
TRANSFER = """
import os, runpy, socket, time
transmitted = runpy.run_path({card!r})["transmitted"]  # by path: importing the package would import torch
rank, sizes = int(os.environ["RANK"]), {sizes}
server = socket.create_server(("", 5000)) if rank == 0 else None
for size in [size for size in sizes for _ in range(3)]:
    if server:
        peer, _ = server.accept()
        before = transmitted()
        peer.recv(1)
        peer.sendall(bytes(size))
        peer.recv(1)
        print("sent", size, transmitted() - before)
    else:
        while True:
            try:
                peer = socket.create_connection((os.environ["MASTER_ADDR"], 5000))
                break
            except ConnectionRefusedError:
                time.sleep(0.02)
        left, begin = size, time.perf_counter()
        peer.sendall(b"?")
        while left:
            left -= len(peer.recv(1 << 20))
        print("rate", size, size * 8e-6 / (time.perf_counter() - begin))
        peer.sendall(b"!")
        time.sleep(0.1)
"""


@lab
class TestHosts:
    def test_environment_and_prefix(self) -> None:
        script = (
            "import os, json, socket, sys; print(json.dumps([dict(os.environ), socket.gethostname()]));"
            "print('to stderr', file=sys.stderr); print('a\\rb\\rc'); print('no newline', end='')"
        )
        done = netlab("--hosts", "3", "--rate", "500mbit", script=script)
        assert done.returncode == 0
        assert re.search(r"^netlab: 3 hosts, 500mbit links, congestion control \w+$", done.stderr, re.M)
        lines = done.stdout.splitlines()
        for rank in range(3):
            own = [line.removeprefix(f"[{rank}] ") for line in lines if line.startswith(f"[{rank}] ")]
            (environment, name), tail = json.loads(own[0]), own[1:]
            assert tail == ["c", "no newline"]
            assert f"[{rank}] to stderr" in done.stderr.splitlines()
            assert name == f"host{rank}"
            expected = {
                "RANK": str(rank),
                "WORLD_SIZE": "3",
                "LOCAL_RANK": "0",
                "LOCAL_WORLD_SIZE": "1",
                "GROUP_RANK": str(rank),
                "GROUP_WORLD_SIZE": "3",
                "GLOO_SOCKET_IFNAME": "eth0",
                "OMP_NUM_THREADS": "1",
            }
            assert expected.items() <= environment.items()
            note = json.loads(environment["NETLAB"])
            assert (note["hosts"], note["rate"], note["bits_per_second"]) == (3, "500mbit", 500_000_000)
            assert f"congestion control {note['congestion_control']}" in done.stderr
        assert len(lines) == 9

    def test_lines_of_several_ranks_do_not_mix(self) -> None:
        script = "import os\nfor i in range(400): print(os.environ['RANK'] * 300, flush=i % 7 == 0)"
        done = netlab("--hosts", "3", script=script)
        lines = done.stdout.splitlines()
        assert len(lines) == 1200
        assert set(lines) == {f"[{rank}] " + f"{rank}" * 300 for rank in range(3)}

    def test_rank0_raw(self) -> None:
        script = "import os, sys; sys.stdout.write('1%\\r2%\\r3%\\n')"
        command = [sys.executable, str(NETLAB), "--rank0-raw", "--", sys.executable, "-c", script]
        done = subprocess.run(command, capture_output=True, timeout=patience(30))
        assert b"1%\r2%\r3%\n" in done.stdout
        assert b"[1] 3%\n" in done.stdout
        assert b"[0]" not in done.stdout

    def test_each_host_counts_its_own_bytes(self) -> None:
        script = TRANSFER.format(card=CARD, sizes=[500_000]) + "\nprint('sysfs', open("
        script += "'/sys/class/net/eth0/statistics/tx_bytes').read().strip(), transmitted('eth0'))"
        done = netlab("--rate", "1gbit", script=script)
        assert done.returncode == 0, done.stderr
        sent = [int(count) for count in re.findall(r"\[0\] sent \d+ (\d+)", done.stdout)]
        assert len(sent) == 3
        assert all(500_000 <= count < 500_000 * 1.06 for count in sent), sent
        totals = {rank: (int(a), int(b)) for rank, a, b in re.findall(r"\[(\d)\] sysfs (\d+) (\d+)", done.stdout)}
        assert all(0 <= counted - sysfs < 10_000 for sysfs, counted in totals.values())
        assert totals["0"][0] > 1_500_000 > 100_000 > totals["1"][0]  # rank 1 only acknowledged


@lab
class TestRate:
    @pytest.mark.parametrize(
        ("rate", "size", "low", "high"), [("1gbit", 5_000_000, 800, 1000), ("100mbit", 1_000_000, 85, 101)]
    )
    def test_payload_rate(self, rate: str, size: int, low: float, high: float) -> None:
        """Payload goes at 95.6 % of the rate, a little faster while the burst lasts; slower on a busy machine."""
        done = netlab("--rate", rate, script=TRANSFER.format(card=CARD, sizes=[size]))
        assert done.returncode == 0, done.stderr
        rates = [float(text) for text in re.findall(r"rate \d+ ([\d.]+)", done.stdout)]
        assert len(rates) == 3
        assert low < max(rates) < high, rates

    def test_many_to_one_shares_the_receivers_link(self) -> None:
        script = (
            "import os, socket, time\n"
            "if os.environ['RANK'] == '0':\n"
            "    server = socket.create_server(('', 5000)); peers = [server.accept()[0] for _ in range(3)]\n"
            "    begin = time.perf_counter(); [peer.sendall(b'!') for peer in peers]\n"
            "    for peer in peers:\n"
            "        left = 500_000\n"
            "        while left: left -= len(peer.recv(1 << 20))\n"
            "    print('rate', 1.5e6 * 8e-6 / (time.perf_counter() - begin))\n"
            "else:\n"
            "    while (peer := socket.socket()).connect_ex(('10.77.0.1', 5000)): time.sleep(0.02)\n"
            "    peer.recv(1)\n"
            "    peer.sendall(bytes(500_000)); peer.recv(1)\n"
        )
        done = netlab("--hosts", "4", "--rate", "100mbit", script=script)
        assert done.returncode == 0, done.stderr
        assert 80 < float(done.stdout.split()[-1]) < 101, done.stdout


@lab
class TestEnd:
    @pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), 9)"])
    def test_a_host_outlives_its_process(self, end: str) -> None:
        """What was sent before the end arrives, then the peer hears that the connection is closed."""
        script = (
            "import os, socket, time\n"
            "if os.environ['RANK'] == '0':\n"
            "    server = socket.create_server(('', 5000)); peer, _ = server.accept()\n"
            f"    peer.sendall(bytes(200_000)); {end}\n"
            "while (peer := socket.socket()).connect_ex(('10.77.0.1', 5000)): time.sleep(0.02)\n"
            "peer.settimeout(5); got = 0\n"
            "while data := peer.recv(1 << 16): got += len(data)\n"
            "print('got', got)\n"
        )
        done = netlab("--rate", "20mbit", script=script)
        assert "[1] got 200000" in done.stdout, done.stderr

    def test_first_bad_exit_code_and_grace(self) -> None:
        own = "if os.environ['RANK'] == '2': time.sleep(0.5); print('ended by itself'); sys.exit(3)\n"
        done = ends("--hosts", "3", "--grace", "1", rank=1, also=own)
        assert "[2] ended by itself" in done.stdout
        assert "[0] asked to end" in done.stdout
        assert "netlab: rank 1 ended with exit code 7" in done.stderr

    def test_killed_rank_and_deaf_peer(self) -> None:
        script = (
            "import os, signal, time\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "if os.environ['RANK'] == '0': os.kill(os.getpid(), signal.SIGSEGV)\n"
            "time.sleep(60)\n"
        )
        begin = time.monotonic()
        done = netlab("--grace", "0", script=script)
        assert done.returncode == 128 + signal.SIGSEGV
        assert time.monotonic() - begin < patience(10)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_signals_reach_every_rank(self, number: int) -> None:
        script = (
            "import os, signal, sys, time\n"
            f"signal.signal({int(number)}, lambda *_: (print('got it', flush=True), os._exit(5)))\n"
            "print('ready', flush=True); time.sleep(60)\n"
        )
        command = [sys.executable, str(NETLAB), "--", sys.executable, "-c", script]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            assert {process.stdout.readline(), process.stdout.readline()} == {"[0] ready\n", "[1] ready\n"}
            process.send_signal(number)
            rest = process.communicate(timeout=patience(15))[0]
        assert sorted(rest.split("\n")[:2]) == ["[0] got it", "[1] got it"]
        assert process.returncode == 5

    def test_nothing_is_left_after_sigkill(self, tmp_path: Path) -> None:
        mark = f"netlab-orphan-{os.getpid()}"
        # Each rank starts a child in a session of its own, deaf to every signal that can be ignored.
        child = f"import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(60) # {mark}"
        script = (
            "import os, subprocess, sys, time\n"
            f"subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
            "print('ready', os.readlink('/proc/self/ns/net'), flush=True); time.sleep(60)\n"
        )
        command = [sys.executable, str(NETLAB), "--", sys.executable, "-c", script]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            spaces = {process.stdout.readline().split()[-1] for _ in range(2)}
            assert len(spaces) == 2
            assert len(processes_with(mark)) >= 4
            process.kill()
        assert gone(mark)
        alive = {os.readlink(path) for path in Path("/proc").glob("[0-9]*/ns/net") if os.access(path, os.R_OK)}
        assert not spaces & alive

    def test_children_of_a_finished_program_go_too(self) -> None:
        mark = f"netlab-daemon-{os.getpid()}"
        child = f"import time; time.sleep(60) # {mark}"
        script = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)"
        assert netlab(script=script).returncode == 0
        assert gone(mark)


@lab
def test_two_labs_at_once() -> None:
    script = TRANSFER.format(card=CARD, sizes=[300_000]) + "\ntime.sleep(0.3)"
    command = [sys.executable, str(NETLAB), "--rate", "100mbit", "--", sys.executable, "-c", script]
    labs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in labs:
        out, err = process.communicate(timeout=patience(30))
        assert process.returncode == 0, err
        rates = [float(text) for text in re.findall(r"\[1\] rate \d+ ([\d.]+)", out)]
        assert len(rates) == 3
        assert 75 < max(rates) < 110, rates  # each lab has links of its own


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rate", "1gb"], "--rate: '1gb' is no rate"),
        (["--rate", "1kbit"], "--rate: '1kbit' is out of range"),
        (["--hosts", "0"], "--hosts: 0 is out of range"),
        (["--hosts", "many"], "--hosts: invalid int value"),
        (["--ranks-per-host", "0"], "--ranks-per-host: 0 is out of range"),
        (["--ranks-per-host", "1.5"], "--ranks-per-host: invalid int value"),
        (["--hosts", "43", "--ranks-per-host", "3"], "3 on 43 hosts make 129 ranks, and a lab has 128 at most"),
        (["--latency", "5"], "'5' is no latency"),
        (["--cores", "0;1"], "--cores: '0;1' is no list"),
        (["--cores", "99999"], "--cores: no core 99999; this process may use"),
        (["--grace", "-1"], "--grace: -1.0 is negative"),
        (["train.py"], "'train.py' is no option; the program and its arguments come after --"),
    ],
)
def test_bad_arguments(arguments: list[str], said: str) -> None:
    done = netlab(*arguments, script="print('ran')")
    assert done.returncode == 2
    assert said in done.stderr
    assert "ran" not in done.stdout


def test_no_program() -> None:
    assert "nothing to run" in netlab().stderr
    done = netlab("--", "no-such-program-anywhere")
    assert (done.returncode, "no such program" in done.stderr) == (2, True)


@pytest.mark.skipif(os.geteuid() != 0 or CHECK.returncode != 0, reason="only root can become somebody else")
def test_no_root_needed() -> None:
    """The same by a user without rights, who gets them in a user namespace where the kernel allows it."""
    script = "import os; print(os.environ['RANK'], os.listdir('/sys/class/net'))"
    python = shutil.which("python3", path="/usr/bin:/bin") or sys.executable  # one for everybody
    command = [python, "-", "--hosts", "2", "--", python, "-c", script]
    try:
        with NETLAB.open() as source:
            done = subprocess.run(
                command,
                stdin=source,
                capture_output=True,
                text=True,
                timeout=patience(30),
                user=65534,
                group=65534,
                cwd="/",
            )
    except PermissionError:
        pytest.skip(f"{python} is not for everybody")
    if done.returncode in (69, 126, 127) and "Traceback" not in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    assert sorted(line[:5] for line in done.stdout.splitlines()) == ["[0] 0", "[1] 1"]
    assert all("eth0" in line for line in done.stdout.splitlines())


@lab
def test_cores() -> None:
    core = min(os.sched_getaffinity(0))
    done = netlab("--cores", str(core), script="import os; print(os.sched_getaffinity(0))")
    assert sorted(done.stdout.splitlines()) == [f"[0] {{{core}}}", f"[1] {{{core}}}"]


@lab
def test_unknown_congestion_control() -> None:
    done = netlab("--cc", "nonesuch", script="print('ran')")
    assert done.returncode == 69
    assert "--cc nonesuch: this kernel has " in done.stderr


def test_unavailable_is_69_with_a_cure(tmp_path: Path) -> None:
    """Without `ip` and `tc` there is no lab; callers tell by the code and print the line."""
    script = NETLAB.read_text().replace('"/usr/sbin", "/sbin"', "")
    assert script != NETLAB.read_text()
    bare = tmp_path / "netlab"
    bare.write_text(script)
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, bare, "--check"], capture_output=True, text=True, env=environment, timeout=patience(20)
    )
    assert done.returncode == 69
    assert done.stderr == "netlab: no `ip` here; cure: apt-get install iproute2 (Fedora: iproute iproute-tc)\n"
