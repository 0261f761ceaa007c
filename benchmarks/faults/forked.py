"""Runs training commands as forks of one process that has imported everything, instead of in new interpreters.

A fork differs from a real process in three ways: the modules are already imported, the worker processes of a run are
forks too (multiprocessing's start method is `fork`), and signals during the imports cannot be tested. Everything else
is separate: arguments, working folder, environment, session, standard streams, exit code, exit handlers.
"""

import atexit
import contextlib
import importlib
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import arbitrary_address  # type: ignore[attr-defined]  # typeshed lacks it
from types import SimpleNamespace
from typing import Any, NoReturn

LAUNCHERS = (
    "lightning.pytorch.strategies.launchers.subprocess_script",
    "lightning.fabric.strategies.launchers.subprocess_script",
)


PROCESSES = ("--data.workers=1", "--data.workers=2")
"""Arguments that start worker processes for a command's environments."""
RUN_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
IMPORTED = (
    *LAUNCHERS, "dqs_lightning.cli.evaluate", "dqs_lightning.cli.fit", "dqs_lightning.cli.training",
    "dqs_lightning.cli.trust",
    # Modules that a run imports only after it has started.
    "fsspec.implementations.local", "gymnasium.envs.classic_control", "omegaconf", "pandas.testing", "pandas.plotting",
    "torch.distributed", "torch.profiler", "torch.utils.tensorboard", "torchrl.collectors", "torchrl.envs",
)  # fmt: skip


def preload() -> None:
    """Import what a training command imports, on one thread."""
    import torch

    torch.set_num_threads(1)
    for name in IMPORTED:
        with contextlib.suppress(ImportError):  # an optional package
            importlib.import_module(name)


def fork(order: Mapping[str, Any]) -> int:
    """Fork a process that runs a command; returns its id.

    Args:
        order: `module`, whose `main` is the command; `argv` (after the program's name), `cwd`, `env`, `ranks`; `out`
            and `err`, files of its streams.
    """
    if pid := os.fork():
        return pid
    os.setsid()
    streams = (
        (os.devnull, os.O_RDONLY),
        *((order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in ("out", "err")),
    )
    for number, (name, mode) in enumerate(streams):
        opened = os.open(name, mode, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    _run(lambda: _command(order))


def _command(order: Mapping[str, Any]) -> int:
    sys.argv = ["dqs-fit", *order["argv"]]
    _settle(order["cwd"], order["env"])
    main: Callable[[], int] = importlib.import_module(order["module"]).main
    if order["ranks"] > 1:
        spare = Spare(main)
        for name in LAUNCHERS:
            sys.modules[name].subprocess = SimpleNamespace(Popen=spare.start)  # type: ignore[attr-defined]
    return main()


def _settle(cwd: str, env: Mapping[str, str]) -> None:
    """Change to a working folder and environment, and reset the parent's values stored in modules."""
    import numpy as np
    import torch

    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None
    signal.signal(signal.SIGINT, signal.default_int_handler)
    random.seed()
    np.random.seed()
    torch.seed()
    multiprocessing.set_start_method("fork", force=True)
    folder = os.getcwd()
    os.register_at_fork(after_in_child=lambda: _close_as_exec_would(folder))
    if any(argument in PROCESSES for argument in sys.argv):
        _start_forkserver()


def _start_forkserver() -> None:
    """Start the server of multiprocessing's `forkserver` method as a fork, while this process has no threads."""
    server: Any = forkserver._forkserver
    address = arbitrary_address("AF_UNIX")
    resource_tracker.ensure_running()  # first, because it unblocks signals
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, RUN_SIGNALS)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        os.chmod(address, 0o600)
        listener.listen()
        alive, held = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(held)
            forkserver.main(listener.detach(), alive, [])
            os._exit(0)
        os.close(alive)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    server._forkserver_address, server._forkserver_alive_fd, server._forkserver_pid = address, held, pid


def _close_as_exec_would(folder: str) -> None:
    """Close the sockets of the process group and the files of the run, which a spawned worker would not have."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            number, place = int(name), os.readlink(f"/proc/self/fd/{name}")
            if number <= 2:
                continue
            if place.startswith("socket:"):
                with socket.socket(fileno=os.dup(number)) as held:
                    internet = held.family in (socket.AF_INET, socket.AF_INET6)
                if internet:
                    os.close(number)
            elif place.startswith(folder + "/"):
                os.close(number)


class Spare:
    """A fork made before the command begins, which becomes the second rank when Lightning's launcher starts one.

    Has the methods of `subprocess.Popen` that the launcher uses.

    Args:
        main: the command.
    """

    def __init__(self, main: Callable[[], int]) -> None:
        reading, self._writing = os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._writing)
            with os.fdopen(reading, "rb") as pipe:
                order = pipe.read()
            if not order:  # the first rank ended before it started the second
                os._exit(0)
            settings = json.loads(order)
            _settle(settings["cwd"], settings["env"])
            _run(main)
        os.close(reading)

    def start(self, command: Sequence[str], env: Mapping[str, str], cwd: str | None = None, **_: Any) -> "Spare":
        order = json.dumps({"cwd": cwd or os.getcwd(), "env": dict(env)}).encode()
        with os.fdopen(self._writing, "wb") as pipe:
            pipe.write(order)
        return self

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int | None:
        return self._reap(0)

    def _reap(self, options: int) -> int | None:
        if self.returncode is None:
            with contextlib.suppress(ChildProcessError):
                pid, status = os.waitpid(self.pid, options)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def _run(main: Callable[[], int]) -> NoReturn:
    """Run `main` and end the process as an interpreter does: join threads, call exit handlers, flush streams."""
    code: Any = 1
    try:
        try:
            code = main()
        except SystemExit as error:
            code = error.code
        except KeyboardInterrupt:
            traceback.print_exc()
            code = 130
        except BaseException:
            traceback.print_exc()
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(int(code or 0))
