"""Time limits on code that may hang: an exception in the main thread, or the end of the process."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

TICK_S = 0.1
"""Time is counted in ticks of a running process, so that one that was suspended for an hour is not an hour late."""
GRACE_S = 10.0
"""Code that has gone on for so long after it was interrupted ends the process."""
ENVIRONMENT_FAILED = 4
"""Exit code of a process that ends because of its environment."""
INTERRUPT: signal.Signals = getattr(signal, "SIGRTMIN", signal.SIGUSR2)
"""The signal that interrupts; a real-time one, which neither users nor libraries send."""


class Overdue(BaseException):
    """Raised inside code that has taken too long; no Exception, so that the code does not catch it unawares."""

    def __init__(self, limit: str, frame: FrameType | None) -> None:
        where = f" ({Path(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_name})" if frame else ""
        super().__init__(limit + where)


class Patience:
    """Counts the time without progress, in ticks.

    Args:
        limit_s: seconds without progress that are allowed.
        progress: a number that changes while there is progress; None: there is none.
    """

    def __init__(self, limit_s: float, progress: Callable[[], int] | None = None) -> None:
        self.limit_s, self._progress = limit_s, progress or (lambda: 0)
        self.seen = self._progress()
        self.waited_s = 0.0

    @property
    def over(self) -> bool:
        return self.waited_s >= self.limit_s

    def tick(self) -> None:
        """Count one tick."""
        now = self._progress()
        self.waited_s = self.waited_s + TICK_S if now == self.seen else 0.0
        self.seen = now

    def wait(self) -> None:
        """Count one tick, and raise a TimeoutError where it was the last one allowed."""
        self.tick()
        if self.over:
            raise TimeoutError


class Deadline:
    """Limits the time of a block of code: a context manager that can be entered again and again.

    In the main thread, `Overdue` is raised inside the block when it has taken longer; this interrupts Python code,
    sleeping, and waiting for locks, files and processes. In another thread, or in C code that does not return, the
    process ends GRACE_S later with exit code ENVIRONMENT_FAILED. C code that never releases the interpreter lock cannot
    be limited.

    Args:
        what: for the message.
        limit_s: seconds; > 0.
    """

    def __init__(self, what: str, limit_s: float) -> None:
        self.what, self.limit_s = what, limit_s
        self._entered = 0
        self._patience = Patience(limit_s, lambda: self._entered)
        self._main = threading.current_thread() is threading.main_thread()
        if self._main and signal.getsignal(INTERRUPT) is not _interrupt:
            signal.signal(INTERRUPT, _interrupt)
        _start_watching()

    def __enter__(self) -> None:
        self._entered += 1
        _running.add(self)

    def __exit__(self, *_: object) -> None:
        _running.discard(self)

    def overdue_here(self) -> bool:
        """Whether the block that is running in the main thread now has taken too long."""
        return self._main and self._patience.over and self._patience.seen == self._entered

    def tick(self) -> None:
        """Count one tick of the running block, and act when it was the last one allowed."""
        self._patience.tick()
        if self._patience.waited_s >= self.limit_s + GRACE_S:
            os.write(2, f"{self.what} did not end within {self.limit_s:g} s and cannot be interrupted\n".encode())
            os._exit(ENVIRONMENT_FAILED)
        if self.overdue_here():
            signal.pthread_kill(threading.main_thread().ident or 0, INTERRUPT)


_running: set[Deadline] = set()


def _start_watching() -> None:
    """Starts the thread that counts ticks, unless it runs; threads do not survive a fork."""
    if all(thread.name != "deadlines" for thread in threading.enumerate()):
        threading.Thread(target=_watch, name="deadlines", daemon=True).start()


def _watch() -> None:
    while True:
        time.sleep(TICK_S)
        for deadline in tuple(_running):
            deadline.tick()


def _interrupt(number: int, frame: FrameType | None) -> None:
    for deadline in tuple(_running):
        if deadline.overdue_here():
            raise Overdue(f"within {deadline.limit_s:g} s", frame)
