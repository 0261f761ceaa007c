"""Time limits: code that hangs is interrupted; code that cannot be interrupted ends its process."""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dqs_lightning.cli import errors
from dqs_lightning.envs import deadline
from dqs_lightning.envs.deadline import Deadline, Overdue, Patience
from dqs_lightning.envs.process import Child, ProcessFailure


def busy() -> None:
    while True:
        pass


def stubborn() -> None:
    while True:
        try:
            time.sleep(1000)
        except Exception:
            continue


HANGS: list[Callable[[], object]] = [lambda: time.sleep(1000), busy, threading.Event().wait, stubborn]


@pytest.mark.parametrize("hang", HANGS, ids=["sleeping", "busy", "waiting", "stubborn"])
def test_code_that_hangs_is_interrupted(hang: Callable[[], object]) -> None:
    limit = Deadline("it", 0.3)
    with limit:  # it can be entered again
        pass
    begun = time.monotonic()
    with pytest.raises(Overdue, match=r"^within 0\.3 s \(.*\.py:\d+ in .*\)$"), limit:
        hang()
    assert 0.2 < time.monotonic() - begun < 3


def test_code_within_the_limit_and_code_after_it_are_not_interrupted() -> None:
    limit = Deadline("it", 0.3)
    for _ in range(20):
        with limit:
            time.sleep(0.05)
    time.sleep(0.6)


def test_the_shorter_of_two_nested_limits_interrupts_first() -> None:
    with Deadline("outer", 30), pytest.raises(Overdue, match=r"^within 0\.2 s"), Deadline("inner", 0.2):
        time.sleep(1000)


def test_the_limit_applies_to_the_time_since_the_last_progress() -> None:
    steps = [0]
    patience = Patience(0.3, lambda: steps[0])
    for _ in range(5):
        patience.tick()
        patience.tick()
        steps[0] += 1
        patience.tick()
        assert not patience.over
    for _ in range(3):
        patience.tick()
    assert patience.over


def _lock_twice() -> None:
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    for _ in range(2):
        library.pthread_mutex_lock(mutex)


class Limited:
    """Runs functions under a time limit in a separate process that writes its messages to a file."""

    def __init__(self, messages: Path) -> None:
        os.dup2(os.open(messages, os.O_CREAT | os.O_WRONLY), 2)

    def __call__(self, call: Callable[[], object]) -> float:
        signal.signal(deadline.INTERRUPT, signal.SIG_DFL)
        deadline.GRACE_S = 0.2
        begun = time.monotonic()
        with Deadline("maze: a step", 0.5):
            call()
        return time.monotonic() - begun

    def close(self) -> None:
        pass


def test_code_that_cannot_be_interrupted_ends_the_process_with_a_message(tmp_path: Path) -> None:
    child = Child(Limited, tmp_path / "err")
    with pytest.raises(ProcessFailure, match=f"^it ended with exit code {errors.ENVIRONMENT_FAILED}$"):
        child.ask(_lock_twice, 60)
    child.close()
    assert (tmp_path / "err").read_text() == "maze: a step did not end within 0.5 s and cannot be interrupted\n"


def _short_sleeps() -> None:
    for _ in range(4):
        time.sleep(0.05)


def test_time_in_which_the_whole_process_was_suspended_does_not_count(tmp_path: Path) -> None:
    child, patience = Child(Limited, tmp_path / "err"), Patience(60)
    child.ask(_short_sleeps, 60)
    child.send(_short_sleeps, patience)
    time.sleep(0.05)
    os.kill(child.pid, signal.SIGSTOP)
    time.sleep(1)
    os.kill(child.pid, signal.SIGCONT)
    assert child.receive(patience) > 1
    child.close()
