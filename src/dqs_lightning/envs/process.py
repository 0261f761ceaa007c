"""Processes that answer requests, and whose failures are found in time, with their cause."""

import ctypes
import multiprocessing
import os
import pickle
import select
import signal
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from dqs_lightning.envs.base import EnvironmentFailure
from dqs_lightning.envs.deadline import INTERRUPT, TICK_S, Overdue, Patience
from dqs_lightning.envs.watched import describe

CONTEXT = multiprocessing.get_context("forkserver")
"""Processes are forked from a server that has imported the environments and runs no threads: they start at once."""
CLOSE_LIMIT_S = 1.0
"""For ending by itself; then a process is killed."""
RUN_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
"""Signals that a shell or a scheduler sends to all processes of a run, and that only the run itself obeys."""
PR_SET_PDEATHSIG = 1
LENGTH = struct.Struct("!Q")
"""Length of a message, in front of it."""
CHUNK_BYTES = 1 << 16


class ProcessFailure(RuntimeError):
    """A process raised, hung or died; the message is the cause."""


class Service(Protocol):
    """Interface of an object that answers requests in a process."""

    def __call__(self, request: Any) -> Any:
        """The answer to a request."""

    def close(self) -> None:
        """Called when there will be no more requests."""


class Child:
    """A process that runs a `Service`, and ends with this one, however this one ends.

    Args:
        build: makes the service, in the process; pickled, as are its arguments.
        args: its arguments.

    Raises:
        ProcessFailure: when it cannot be started.
    """

    def __init__(self, build: Callable[..., Service], *args: Any) -> None:
        _start_server(build.__module__)
        self._pipe, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=_serve, args=(theirs, build, args), daemon=True)
        try:
            self._process.start()
        except (OSError, EOFError) as error:
            raise ProcessFailure(f"it could not be started: {error}") from error
        finally:
            theirs.close()
        self.pid = self._process.pid or 0
        # Before multiprocessing's own exit function, which would wait for a process that does not obey SIGTERM.
        self._finish = util.Finalize(self, _finish, (self._process, self._pipe), exitpriority=100)

    def send(self, request: Any, patience: Patience) -> None:
        """Send a request; its answer must be received before the next one. Raises as `receive` does."""
        self._transfer(patience, write, request)

    def receive(self, patience: Patience) -> Any:
        """The answer to the last request.

        Raises:
            ProcessFailure: when the service raised, the process died, or there was no progress within the limit.
        """
        well, answer = self._transfer(patience, read) or (False, self._death())
        if not well:
            raise ProcessFailure(answer)
        return answer

    def _transfer(self, patience: Patience, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(self._pipe.fileno(), *arguments, wait=patience.wait)
        except TimeoutError as error:
            raise ProcessFailure(f"no answer within {patience.limit_s:g} s{self._place()}") from error
        except OSError as error:
            raise ProcessFailure(self._last_answer() or self._death()) from error

    def ask(self, request: Any, limit_s: float) -> Any:
        """Send a request and receive its answer."""
        patience = Patience(limit_s)
        self.send(request, patience)
        return self.receive(patience)

    def _last_answer(self) -> str:
        """Returns the error that a process has sent before it ended, to which no request can be sent any more."""
        with suppress(OSError):
            well, answer = read(self._pipe.fileno(), Patience(CLOSE_LIMIT_S).wait) or (True, "")
            return "" if well else str(answer)
        return ""

    def _place(self) -> str:
        """Interrupts a process that hangs, so that it answers where; returns the end of the message."""
        if _is_stopped(self.pid):
            return "; it has been stopped by a signal"
        with suppress(Exception):  # it may die, or be interrupted within a message
            os.kill(self.pid, INTERRUPT)
            well, answer = read(self._pipe.fileno(), Patience(CLOSE_LIMIT_S).wait)
            if not well:
                return f": {answer}"
        return ""

    def _death(self) -> str:
        if not self._finish.still_active():
            return "it has been ended"
        self._process.join(CLOSE_LIMIT_S)
        code = self._process.exitcode
        if code is None:
            return "it closed its pipe"
        if code >= 0:
            return f"it ended with exit code {code}"
        known = {number.value: number.name for number in signal.Signals}
        return f"it was killed by {known.get(-code, f'signal {-code}')}"

    def release(self) -> None:
        """Let the process end by itself."""
        self._pipe.close()

    def close(self) -> None:
        """End the process, by force if it does not end by itself within CLOSE_LIMIT_S."""
        self._finish()

    def kill(self) -> None:
        """End the process by force."""
        if self._finish.still_active():
            self._process.kill()
            self._finish()


def write(file: int, value: Any, wait: Callable[[], None] | None = None) -> None:
    """Send a value.

    Args:
        file: descriptor of a socket or pipe.
        value: what pickle can take; tensors are copied.
        wait: called at each tick in which nothing could be sent; may raise. None: there is no time limit.

    Raises:
        OSError: when the other side has closed.
    """
    data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    rest = memoryview(LENGTH.pack(len(data)) + data)
    os.set_blocking(file, False)
    while rest:
        try:
            rest = rest[os.write(file, rest) :]
        except BlockingIOError:
            if not select.select([], [file], [], TICK_S)[1] and wait is not None:
                wait()


def read(file: int, wait: Callable[[], None] | None = None) -> Any:
    """Receive a value; None when the other side has closed. See `write`."""
    ready = select.poll()
    ready.register(file, select.POLLIN)
    data, length = bytearray(), LENGTH.size
    while len(data) < length:
        if not ready.poll(None if wait is None else 1000 * TICK_S):
            assert wait is not None
            wait()
        elif piece := os.read(file, max(length - len(data), CHUNK_BYTES)):
            data += piece
            if length == LENGTH.size <= len(data):
                length += LENGTH.unpack_from(data)[0]
        else:
            return None
    return pickle.loads(memoryview(data)[LENGTH.size :])


def _start_server(module: str) -> None:
    """Start the server from which processes are forked, if it does not run yet; it ignores the run's signals."""
    resource_tracker.ensure_running()  # first, since it unblocks signals
    CONTEXT.set_forkserver_preload([__name__, module])
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, RUN_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _finish(process: Any, pipe: Connection) -> None:
    pipe.close()
    process.join(CLOSE_LIMIT_S)
    if process.is_alive():
        process.kill()
        process.join()
    process.close()


def _is_stopped(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    return False


def _serve(pipe: Connection, build: Callable[..., Service], args: tuple[Any, ...]) -> None:
    """Main function of the process."""
    # The server ends when no process holds this descriptor any more, and kills what it has started.
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in RUN_SIGNALS:  # handlers, because ignored or blocked ones would stay so in programs started here
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, RUN_SIGNALS)
    signal.signal(INTERRUPT, _interrupt)
    torch.set_num_threads(1)
    file = pipe.fileno()
    try:
        service = build(*args)
        while (request := read(file)) is not None:
            answer = service(request)
            with suppress(OSError):  # the other side has closed: there is no further request
                write(file, (True, answer))
        service.close()
    except BaseException as error:
        with suppress(OSError):
            write(file, (False, str(error) if isinstance(error, EnvironmentFailure) else describe(error)))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Overdue("in time", frame)
