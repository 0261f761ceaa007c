"""Starts, observes, signals and ends training commands, as forks or as real processes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from faults.child import VARIABLE
from faults.hooks import MARKS

ROOT = Path(__file__).resolve().parents[2]
LOOK_EVERY_S = 0.02
START_S = 180.0

FORKED, REAL = "fork", "process"


def environment(hooks: Sequence[Sequence[Any]] = (), tmpdir: Path | None = None) -> dict[str, str]:
    """Returns this process's environment with the hooks of a run and without variables set by other runs."""
    kept = {name: value for name, value in os.environ.items() if name not in ("DQS_RUN_DIR", "LOCAL_RANK")}
    paths = [*filter(None, [os.environ.get("PYTHONPATH")]), ROOT / "benchmarks", ROOT / "src", ROOT / "callbacks"]
    own = {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1", VARIABLE: json.dumps(list(hooks))}
    return {**kept, **own, **({"TMPDIR": str(tmpdir)} if tmpdir else {})}


class Ended(NamedTuple):
    """How a run ended.

    Attributes:
        code: exit code of the first rank, negative for a signal; None if it had to be killed.
        seconds: time from the call of `Run.end` until the last process had ended.
        left: processes that had not ended by the limit and were killed.
    """

    code: int | None
    seconds: float
    left: list[str]


class Run:
    """A started training command, whose processes form one session.

    Args:
        pid: process id of the first rank, which leads the session.
        cwd: working folder; holds the files `out` and `err` and the folder `marks`.
        poll: returns the exit code, or None while the first rank runs.
    """

    def __init__(self, pid: int, cwd: Path, poll: Any) -> None:
        self.pid, self.cwd, self._poll = pid, cwd, poll
        self.code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            self.code = self._poll()
        return self.code

    @property
    def err(self) -> str:
        return (self.cwd / "err").read_text(errors="replace")

    def processes(self) -> dict[int, str]:
        """Returns id and command line of each process of the session that is still running."""
        return {pid: _command_line(pid) for pid in all_processes() if session_of(pid) == self.pid}

    def marked(self, name: str, timeout_s: float = START_S) -> int:
        """Wait until a file of `marks` exists; returns the id of the process that wrote it first.

        Raises:
            RuntimeError: if the run ends before, or after the timeout.
        """
        file, until = self.cwd / MARKS / name, time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(FileNotFoundError):
                if line := file.read_text():
                    return int(line.split()[1])
            if self.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"no mark {name}; exit code {self.code}; {self.err[-600:]}")
            time.sleep(LOOK_EVERY_S / 4)

    def go(self) -> None:
        """Let processes continue that wait in `hooks.pause`."""
        (self.cwd / MARKS / "go").touch()

    def end(self, limit_s: float) -> Ended:
        """Wait at most `limit_s` until every process has ended; kill those that have not."""
        begun = time.monotonic()
        left: dict[int, str] = {}
        while self.poll() is None or (left := self.processes()):
            if time.monotonic() - begun > limit_s:
                left = self.processes()
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                break
            time.sleep(LOOK_EVERY_S)
        code, seconds = self.code, time.monotonic() - begun
        while self.poll() is None:
            time.sleep(LOOK_EVERY_S)
        return Ended(code, round(seconds, 2), list(left.values()))


class Launcher:
    """Starts runs. The process that forks them is started when first needed and ended by `close`.

    Args:
        paths: folders of additional modules that forked commands can import.
    """

    def __init__(self, paths: Sequence[Path] = ()) -> None:
        self._paths = paths
        self._lock = threading.Lock()
        self._server: subprocess.Popen[str] | None = None

    def start(
        self,
        argv: Sequence[str],
        cwd: Path,
        ranks: int = 1,
        hooks: Sequence[Sequence[Any]] = (),
        how: str = FORKED,
        tmpdir: Path | None = None,
        module: str = "faults.child",
    ) -> Run:
        """Start a module's command, by default `dqs-fit`, in a folder, which is created and cleared of marks."""
        cwd.mkdir(parents=True, exist_ok=True)
        for mark in (cwd / MARKS).glob("*"):
            mark.unlink()
        env = environment(hooks, tmpdir)
        if how == REAL:
            with (cwd / "out").open("w") as out, (cwd / "err").open("w") as err:
                process = subprocess.Popen(
                    [sys.executable, "-m", module, *argv],
                    cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
                )  # fmt: skip
            return Run(process.pid, cwd, process.poll)
        streams = {"out": str(cwd / "out"), "err": str(cwd / "err")}
        order = {"module": module, "argv": list(argv), "cwd": str(cwd), "env": env, "ranks": ranks, **streams}
        pid = self._ask({"fork": order})["pid"]
        return Run(pid, cwd, lambda: self._ask({"poll": pid})["code"])

    def run(self, argv: Sequence[str], cwd: Path, limit_s: float = 120.0, **settings: Any) -> tuple[Ended, str]:
        """Start a command and wait for it; returns how it ended and its stderr."""
        started = self.start(argv, cwd, **settings)
        ended = started.end(limit_s)
        return ended, started.err

    def _ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock:
            if self._server is None:
                env = environment()
                env["PYTHONPATH"] = os.pathsep.join([*map(str, self._paths), env["PYTHONPATH"]])
                self._server = subprocess.Popen(
                    [sys.executable, "-m", "faults.server"],
                    env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                )  # fmt: skip
                self._answer()
            assert self._server.stdin is not None
            print(json.dumps(order), file=self._server.stdin, flush=True)
            return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._server is not None and self._server.stdout is not None
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that forks runs has ended with code {self._server.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        if self._server is not None:
            assert self._server.stdin is not None
            self._server.stdin.close()
            self._server.wait(30)
            self._server = None


def all_processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def session_of(pid: int) -> int | None:
    """Returns the session of a process; None if it has ended or is a zombie."""
    try:
        state, _, _, session = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
    except (OSError, ValueError):
        return None
    return None if state == "Z" else int(session)


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
    except OSError:
        return ""
