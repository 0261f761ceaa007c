"""Tests of child processes: they answer requests, report the cause of a failure, and leave no process behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty import ended

from dqs_lightning.envs.deadline import Patience
from dqs_lightning.envs.process import RUN_SIGNALS, Child, ProcessFailure


class Echo:
    """Returns a request times `factor`; calls a request that is callable and returns its result."""

    def __init__(self, factor: int = 1) -> None:
        self.factor = factor

    def __call__(self, request: Any) -> Any:
        return request() if callable(request) else request * self.factor

    def close(self) -> None:
        pass


def disposition() -> list[Any]:
    handlers = {signal.getsignal(number) for number in RUN_SIGNALS}
    return [handlers & {signal.SIG_DFL, signal.SIG_IGN}, signal.pthread_sigmask(signal.SIG_BLOCK, [])]


def test_large_messages_are_transferred_completely_in_both_directions() -> None:
    child = Child(Echo, 2)
    for size in (1, 65_528, 65_536, 3_000_000):
        sent = np.random.default_rng(0).standard_normal(size)
        assert np.array_equal(child.ask(sent, 60), 2 * sent)
    child.close()
    assert ended(child.pid)


def test_a_process_that_is_stopped_within_a_message_does_not_block_this_one() -> None:
    child, patience = Child(Echo), Patience(60)
    child.ask(1, 60)
    child.send(np.zeros(3_000_000), patience)
    time.sleep(0.5)  # by then it is writing its answer, which is not being read
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(ProcessFailure, match=r"^no answer within 0\.5 s; it has been stopped by a signal$"):
        child.receive(Patience(0.5))
    child.kill()
    child = Child(Echo)
    child.ask(1, 60)
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(ProcessFailure, match=r"^no answer within 0\.5 s; it has been stopped by a signal$"):
        child.send(np.zeros(3_000_000), Patience(0.5))
    child.kill()
    assert ended(child.pid)


def test_the_error_of_a_process_that_has_ended_before_the_first_request_is_reported() -> None:
    child = Child(Echo, *range(2))
    until = time.monotonic() + 60
    while child._process.is_alive():
        assert time.monotonic() < until
        time.sleep(0.05)
    with pytest.raises(ProcessFailure, match=r"^TypeError: .* takes from 1 to 2 positional arguments but 3 were given"):
        child.ask(1, 60)
    child.close()


def test_failures_are_reported_with_their_cause() -> None:
    causes = {
        os.abort: "it was killed by SIGABRT",
        sys.exit: r"SystemExit: \(test_process.py:\d+ in __call__\)",
        dict.fromkeys: r"TypeError: fromkeys expected at least 1 argument, got 0 \(test_process.py:\d+ in __call__\)",
    }
    for call, cause in causes.items():
        child = Child(Echo)
        with pytest.raises(ProcessFailure, match=cause):
            child.ask(call, 60)
        with pytest.raises(ProcessFailure, match=r"^it (ended|was killed)"):
            child.ask(1, 60)
        child.close()
        child.kill()


def test_programs_started_in_a_process_have_default_signal_handling() -> None:
    child = Child(Echo)
    assert child.ask(disposition, 60) == [set(), set()]
    child.close()


SCRIPT = """
import os, sys
from faulty import Faulty
from dqs_lightning.envs.restarts import Restarts
from dqs_lightning.envs.workers import WorkerBatch

class Both(Faulty):
    def make(self, num_envs, seed):
        batch = super().make(num_envs, seed)
        self.fault = {1: "busy", 2: "stopped"}.get(seed, "")
        return batch

if __name__ == "__main__":
    env = WorkerBatch(Both("", at=1), 3, 3, 0, 1000.0, Restarts())
    print(*(worker.pid for worker in env._workers), flush=True)
    if sys.argv[1] == "step":
        env.rollout(3)
"""


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.slow
@pytest.mark.parametrize("end", ["killed", "exits"])
def test_no_process_outlives_the_one_that_started_it(tmp_path: Path, end: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    arguments = [sys.executable, str(script), "step" if end == "killed" else "exit"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 3
        pids += [int(pid) for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
        if end == "killed":
            while state_of(pids[2]) != "T":
                time.sleep(0.05)
            parent.kill()
        assert parent.wait(20) == (-signal.SIGKILL if end == "killed" else 0)
    assert all(ended(pid, within_s=30) for pid in pids)
