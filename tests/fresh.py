"""Programs in interpreters that have imported torch and nothing else of interest, without paying for that import each.

One process imports torch and forks for each program: what the package reads when it is imported (its environment, which
library is there) and what happens at an interpreter's end are the program's own. A fork goes on in the main script, so
it ends as any program does.

Where the import is not what is tested, ``warm=True`` forks another process, which has imported the package too, and
what torch itself imports with its first optimizer: that takes longer than most of these programs run.

>>> Programs(folder).run("import compcomm; print(compcomm.__name__)")
"""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from tests.patience import patience

ROOT = Path(__file__).resolve().parents[1]
COLD = """
import torch, torch.distributed, torch.distributed.tensor, torch.nn.parallel
assert not {"compcomm", "triton"} & sys.modules.keys(), "a fresh interpreter has imported neither"
"""
WARM = """
import torch, torch.distributed, torch.nn.parallel
import compcomm
"""
BENCHMARKS = ("matplotlib.pyplot", "rich.progress", "rich.table", "sklearn.datasets")
"""What benchmarks draw and train with, which takes as long as many of them run."""
SERVER = """
gc.freeze()
children = 0
while True:
    ready, _, _ = select.select([0], [], [], 0.02 if children else None)
    while children:
        child, status = os.waitpid(-1, os.WNOHANG)
        if not child:
            break
        children -= 1
        print(json.dumps([child, os.waitstatus_to_exitcode(status)]), flush=True)
    if not ready:
        continue
    line = b""
    while not line.endswith(b"\\n"):
        more = os.read(0, 1)
        if not more:
            os._exit(0)
        line += more
    job = json.loads(line)
    for name in job["imports"]:  # here, so that all further programs have it too
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    child = os.fork()
    if child == 0:
        break
    children += 1
    print(json.dumps([child, None]), flush=True)
for stream, name in ((0, os.devnull), (1, job["out"]), (2, job["err"])):
    os.dup2(os.open(name, os.O_RDWR | os.O_CREAT, 0o644), stream)
os.environ.update(job["environment"])
sys.argv = ["program", *job["arguments"]]
exec(compile(job["code"], "program", "exec"), {"__name__": "__main__"})
"""


class Ended(NamedTuple):
    """How a program ended; ``returncode`` is negative where a signal ended it."""

    returncode: int
    stdout: str
    stderr: str


class Server:
    """A process that imports, and then forks for each program."""

    def __init__(self, imports: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"import contextlib, gc, importlib, json, os, select, sys\n{imports}{SERVER}"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self._rest = b""
        self.ended: dict[int, int] = {}

    def begin(self, job: dict[str, object]) -> int:
        """The process id of a program that has begun."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        self._process.stdin.flush()
        while True:
            pid, code = self._read(patience(60))
            if code is None:
                return pid
            self.ended[pid] = code

    def end(self, pid: int, late: float) -> int:
        """The exit code of a program that ends before ``late``."""
        while pid not in self.ended:
            found, code = self._read(late - time.monotonic())
            assert code is not None
            self.ended[found] = code
        return self.ended.pop(pid)

    def stop(self) -> None:
        self._process.communicate()

    def _read(self, timeout: float) -> tuple[int, int | None]:
        """The next line: a program that has begun, or one that has ended."""
        assert self._process.stdout is not None
        late = time.monotonic() + timeout
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, late - time.monotonic()))
            if not ready:
                raise TimeoutError
            more = os.read(self._process.stdout.fileno(), 4096)
            assert more, "the process that forks has died"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        pid, code = json.loads(line)
        return pid, code


class Programs:
    """The processes that fork, each started with its first program."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._numbers = folder, itertools.count()
        self._servers: dict[bool, Server] = {}
        self._begun: dict[int, tuple[Server, Path, Path]] = {}

    def start(
        self, code: str, *arguments: str, warm: bool = False, imports: tuple[str, ...] = (), **environment: str
    ) -> int:
        """The process id of a program that has begun. ``imports``: what it finds imported, where that is installed."""
        if warm not in self._servers:
            self._servers[warm] = Server(WARM if warm else COLD)
        number = next(self._numbers)
        out, err = self._folder / f"{number}.out", self._folder / f"{number}.err"
        job = {"code": code, "arguments": arguments, "environment": environment, "out": str(out), "err": str(err),
               "imports": imports}  # fmt: skip
        pid = self._servers[warm].begin(job)
        self._begun[pid] = self._servers[warm], out, err
        return pid

    def output(self, pid: int) -> str:
        """What it has said by now."""
        out = self._begun[pid][1]
        return out.read_text() if out.exists() else ""

    def wait(self, pid: int, timeout: float = 60) -> Ended:
        """Its end; a program that takes longer is killed, and that is a failure."""
        server, out, err = self._begun[pid]
        try:
            code = server.end(pid, time.monotonic() + patience(timeout))
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"not ended within {timeout} s: {out}, {err}") from None
        del self._begun[pid]
        return Ended(code, out.read_text(), err.read_text())

    def run(self, code: str, *arguments: str, timeout: float = 60, **more: Any) -> Ended:
        return self.wait(self.start(code, *arguments, **more), timeout)

    def script(self, script: str | Path, *arguments: str, timeout: float = 100, **environment: str) -> Ended:
        """The end of a script: a path, or the name of a module. It starts warm, in this folder."""
        return self.run(_main(script), *arguments, timeout=timeout, warm=True, OMP_NUM_THREADS="1", **environment)

    def ranks(self, world: int, script: str | Path, *arguments: str, timeout: float = 100, **environment: str) -> str:
        """What the ranks of a script say, started with what torchrun tells them; each must end well."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        imports = BENCHMARKS if isinstance(script, Path) else ()
        given = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": port, "OMP_NUM_THREADS": "1", **environment}  # fmt: skip
        begun = [
            self.start(_main(script), *arguments, warm=True, imports=imports, RANK=str(r), LOCAL_RANK=str(r), **given)
            for r in range(world)
        ]
        ended = [self.wait(program, timeout) for program in begun]
        said = "".join(out + err for _, out, err in ended)
        assert not any(code for code, *_ in ended), said
        return said

    def stop(self) -> None:
        for server in self._servers.values():
            server.stop()


def _main(script: str | Path) -> str:
    """A program that does what Python does when it is called with that script."""
    if isinstance(script, Path):
        there, run = f"sys.path[0] = {str(script.parent)!r}", f"run_path({str(script)!r}, run_name='__main__')"
    else:
        there, run = "", f"run_module({script!r}, run_name='__main__')"
    return f"import os, runpy, sys; os.chdir({os.getcwd()!r}); {there}\nrunpy.{run}"
