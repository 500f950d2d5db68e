"""Programs in interpreters that have imported torch and nothing else of interest, without paying for that import each.

One process imports torch and forks for each program: what the package reads when it is imported (its environment, which
library is there) and what happens at an interpreter's end are the program's own. A fork goes on in the main script, so
it ends as any program does.

>>> fresh(folder).run("import compcomm; print(compcomm.__name__)")
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
from typing import NamedTuple

from tests.patience import patience

ROOT = Path(__file__).resolve().parents[1]
SERVER = """
import gc, json, os, select, sys
import torch, torch.distributed, torch.nn.parallel
assert not {"compcomm", "triton"} & sys.modules.keys(), "a fresh interpreter has imported neither"
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
    child = os.fork()
    if child == 0:
        break
    children += 1
    print(json.dumps([child, None]), flush=True)
job = json.loads(line)
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


class Programs:
    """The process that forks, started with the first program."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._numbers = folder, itertools.count()
        self._server: subprocess.Popen[bytes] | None = None
        self._ended: dict[int, int] = {}
        self._files: dict[int, tuple[Path, Path]] = {}
        self._rest = b""

    def start(self, code: str, *arguments: str, **environment: str) -> int:
        """The process id of a program that has begun."""
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-c", SERVER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        assert self._server.stdin is not None
        number = next(self._numbers)
        out, err = self._folder / f"{number}.out", self._folder / f"{number}.err"
        job = {"code": code, "arguments": arguments, "environment": environment, "out": str(out), "err": str(err)}
        self._server.stdin.write(json.dumps(job).encode() + b"\n")
        self._server.stdin.flush()
        while True:
            pid, code_of = self._read(patience(60))
            if code_of is None:
                self._files[pid] = out, err
                return pid
            self._ended[pid] = code_of

    def output(self, pid: int) -> str:
        """What it has said by now."""
        out = self._files[pid][0]
        return out.read_text() if out.exists() else ""

    def wait(self, pid: int, timeout: float = 60) -> Ended:
        """Its end; a program that takes longer is killed, and that is a failure."""
        late = time.monotonic() + patience(timeout)
        while pid not in self._ended:
            try:
                found, code = self._read(late - time.monotonic())
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise AssertionError(f"not ended within {timeout} s: {self._files[pid]}") from None
            assert code is not None
            self._ended[found] = code
        return Ended(self._ended.pop(pid), *(path.read_text() for path in self._files.pop(pid)))

    def run(self, code: str, *arguments: str, timeout: float = 60, **environment: str) -> Ended:
        return self.wait(self.start(code, *arguments, **environment), timeout)

    def ranks(self, world: int, script: str | Path, *arguments: str, timeout: float = 100, **environment: str) -> str:
        """What the ranks of a script say, started with what torchrun tells them; each must end well. ``script``: a
        path, or the name of a module."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        given = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": port, "OMP_NUM_THREADS": "1", **environment}  # fmt: skip
        code = (
            f"import os, runpy, sys; os.chdir({os.getcwd()!r}); sys.path[0] = {str(Path(script).parent)!r}\n"
            f"runpy.run_path({str(script)!r}, run_name='__main__')"
            if isinstance(script, Path)
            else f"import os, runpy; os.chdir({os.getcwd()!r}); runpy.run_module({script!r}, run_name='__main__')"
        )
        begun = [self.start(code, *arguments, RANK=str(r), LOCAL_RANK=str(r), **given) for r in range(world)]
        ended = [self.wait(program, timeout) for program in begun]
        said = "".join(out + err for _, out, err in ended)
        assert not any(code for code, *_ in ended), said
        return said

    def stop(self) -> None:
        if self._server is not None:
            self._server.communicate()

    def _read(self, timeout: float) -> tuple[int, int | None]:
        """The next line: a program that has begun, or one that has ended."""
        assert self._server is not None and self._server.stdout is not None
        late = time.monotonic() + timeout
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._server.stdout], [], [], max(0.0, late - time.monotonic()))
            if not ready:
                raise TimeoutError
            more = os.read(self._server.stdout.fileno(), 4096)
            assert more, "the process that forks has died"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        pid, code = json.loads(line)
        return pid, code
