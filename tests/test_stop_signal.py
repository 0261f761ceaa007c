"""Tests of stop signals in each phase of a run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from dqs_lightning.stop_signal import SIGNALS, Phase, StopInterrupt, StopSignal


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    found = StopSignal()
    assert found.install(Phase.BUILD)
    yield found
    found.uninstall()


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    for _ in range(100):  # the handler runs between two bytecodes
        pass


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_a_run_is_built_exits_with_75(stop: StopSignal, number: int) -> None:
    with pytest.raises(SystemExit) as ended:
        send(number)
    assert ended.value.code == 75 and stop.received == number


@pytest.mark.parametrize("number", SIGNALS)
def test_in_training_a_signal_is_recorded_and_interrupts_only_evaluations(stop: StopSignal, number: int) -> None:
    stop.phase = Phase.TRAIN
    send(number)
    assert stop.received == number
    with pytest.raises(StopInterrupt), stop.interrupting():
        pytest.fail("an evaluation was begun after the signal")
    stop.received = None
    with pytest.raises(StopInterrupt), stop.interrupting():
        send(number)
        pytest.fail("the signal did not interrupt")
    send(signal.SIGTERM)  # outside of an evaluation it is only recorded


def test_a_second_keyboard_interrupt_is_raised_immediately(stop: StopSignal) -> None:
    stop.phase = Phase.TRAIN
    send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


def test_the_previous_signal_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    found = StopSignal()
    assert found.install(Phase.TRAIN) and not found.install(Phase.TRAIN)
    found.uninstall()
    assert [signal.getsignal(number) for number in SIGNALS] == before


CHILD = """
import ctypes, os, sys, time
from dqs_lightning.stop_signal import Phase, StopSignal
stop = StopSignal()
stop.install(Phase[sys.argv[1]])
print("ready", flush=True)
# Python's handlers do not run while the main thread is in C: PyDLL keeps the lock, CDLL releases it.
for _ in range(50):
    ctypes.CDLL(None).usleep(200_000)
"""


def started(phase: str, **variables: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"} | variables
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, phase], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_anything_is_built_ends_the_process_immediately_without_a_traceback(number: int) -> None:
    process = started("START")
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 75 and err == "dqs-fit: stopped before training began\n"


def test_a_rank_forwards_the_signal_to_the_first_rank() -> None:
    """This process is the first rank; the other rank is blocked in C code."""
    found = StopSignal()
    found.install(Phase.TRAIN)
    try:
        process = started("TRAIN", LOCAL_RANK="1")
        process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + 20
        while found.received is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert found.received == signal.SIGTERM
        process.kill()
        process.communicate()
    finally:
        found.uninstall()
