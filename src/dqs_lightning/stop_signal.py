"""Signals that stop a run: SIGTERM, SIGINT, SIGUSR1 and SIGHUP."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from enum import Enum
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
EXIT_CODE = 75
"""Exit code of a run that was stopped and can be continued."""
GRACE_S = 3.0
"""Seconds that the main thread has to react before training begins; it may be waiting in C++ for another rank."""


class StopInterrupt(BaseException):
    """Raised inside `StopSignal.interrupting` by a stop signal; no Exception, so that nothing else catches it."""


class Phase(Enum):
    """Effect of a stop signal."""

    START = "ends the process at once: nothing has been written"
    BUILD = "raises SystemExit(75), so that what has been created is removed again"
    TRAIN = "sets `received`; the training loop stops at the next update and saves"
    DONE = "is ignored: the run has ended"


class StopSignal:
    """Receives stop signals; what they do depends on the phase.

    A second SIGINT raises KeyboardInterrupt in every phase. Signals are also read by a thread, through
    `signal.set_wakeup_fd`, because a Python handler does not run while the main thread waits in C++. In a rank that
    Lightning started, the thread forwards the signal to the first rank, for which the others may be waiting. Before
    training begins, it ends a process whose main thread does not react.
    """

    def __init__(self) -> None:
        self.phase = Phase.START
        self.received: signal.Signals | None = None
        self.abandon: Callable[[], None] = lambda: None
        """Called before the process is ended from the thread: ends child processes, removes what was created."""
        self._previous: dict[int, Any] = {}
        self._interruptible = False
        self._pipe: tuple[int, int] | None = None
        self._previous_fd = -1

    @property
    def installed(self) -> bool:
        return bool(self._previous)

    def install(self, phase: Phase) -> bool:
        """Handle the signals from now on; returns False where they are handled already, or outside the main thread."""
        if self.installed or threading.current_thread() is not threading.main_thread():
            return False
        self.phase, self.received = phase, None
        self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._previous_fd = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        threading.Thread(target=self._read, args=self._pipe[:1], name="stop-signal", daemon=True).start()
        return True

    def uninstall(self) -> None:
        """Restore the handlers that there were before `install`."""
        if not self.installed or self._pipe is None:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        os.close(self._pipe[1])  # ends the thread
        self._previous, self._pipe = {}, None

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Within it a stop signal, also one received before, raises `StopInterrupt`."""
        if self.received is not None and self.phase is Phase.TRAIN:
            raise StopInterrupt
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.received = self.received is not None, signal.Signals(number)
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.phase is Phase.START:
            self._exit()
        elif self.phase is Phase.BUILD and not again:
            raise SystemExit(EXIT_CODE)
        elif self.phase is Phase.TRAIN and self._interruptible:
            self._interruptible = False
            raise StopInterrupt

    def _read(self, pipe: int) -> None:
        with os.fdopen(pipe, "rb", buffering=0) as stream:
            while data := stream.read(64):
                if any(number in data for number in SIGNALS):
                    self._forward()
                    if self.phase is not Phase.TRAIN:
                        threading.Thread(target=self._enforce, daemon=True).start()

    def _enforce(self) -> None:
        """End the process where the main thread does not."""
        time.sleep(GRACE_S)
        if self.installed and self.phase in (Phase.START, Phase.BUILD):
            self.abandon()
            self._exit()

    def _exit(self) -> None:
        if not started_by_another_rank():
            print("dqs-fit: stopped before training began", file=sys.stderr, flush=True)
        # A rank that Lightning started ends with 0: at any other code Lightning kills the first rank.
        os._exit(0 if started_by_another_rank() else EXIT_CODE)

    def _forward(self) -> None:
        if started_by_another_rank() and os.getppid() != 1:
            with contextlib.suppress(ProcessLookupError):
                os.kill(os.getppid(), signal.SIGTERM)


def started_by_another_rank() -> bool:
    """Whether this process is a rank that Lightning's launcher in the first rank started."""
    return os.environ.get("LOCAL_RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" not in os.environ


STOP = StopSignal()
"""The stop signal of this process."""
