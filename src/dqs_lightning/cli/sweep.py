"""`dqs-sweep`: trains tasks x variants x seeds from one file, side by side, through Ray."""

import argparse
import contextlib
import fcntl
import importlib.util
import logging
import os
import re
import shlex
import signal
import socket
import sys
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # a run is as fast as one by hand; Ray's default is 15

from dqs_lightning.cli.errors import DONE, STOPPED, InputError, print_all, refusing, reported
from dqs_lightning.cli.provenance import about
from dqs_lightning.cli.shipped import find
from dqs_lightning.cli.sweep_manifest import COLOURS, Manifest, View
from dqs_lightning.cli.sweep_plan import Run, expand, read_sweep
from dqs_lightning.cli.sweep_process import execute

FAILED = 1
"""Exit code of a sweep of which a run failed; the others went on."""
POLL_S = 1.0
"""Seconds between two checks of the runs."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="dqs-sweep",
        allow_abbrev=False,
        description="Train tasks x variants x seeds. The same command again skips what is finished and continues the "
        "rest. Exit codes: 0 all done, 1 a run failed, 2 bad input, 75 stopped by a signal (run it again).",
    )
    parser.add_argument("file", type=Path, help="the sweep file, or a shipped one, such as sweeps/maze_temperature")
    parser.add_argument("--out", type=Path, help="the sweep's folder (default runs/sweeps/NAME-OF-THE-FILE)")
    parser.add_argument("--dry-run", action="store_true", help="print the dqs-fit command lines and start nothing")
    parser.add_argument("--jobs", type=int, help="runs at a time (default: as many as the CPUs are enough for)")
    parser.add_argument("--cpus-per-run", type=int, default=1, help="CPUs, and torch's threads, of a run (default 1)")
    parser.add_argument("--gpus-per-run", type=float, default=0, help="GPUs of a run; 0, the default, hides them")
    parser.add_argument("--address", help="a Ray cluster that sees the same disk, host:port or auto (default: here)")
    options = parser.parse_args(arguments)
    for name, least in (("jobs", 1), ("cpus_per_run", 1), ("gpus_per_run", 0)):
        value = getattr(options, name)
        if value is not None and not least <= value < float("inf"):
            parser.error(f"--{name.replace('_', '-')}={value}: must be >= {least}")
    return options


@contextlib.contextmanager
def stop_file(out: Path) -> Iterator[Path]:
    """Gives a file that the first SIGTERM or SIGINT creates, on which the workers stop their runs.

    A second signal has its usual effect; Ray's workers then end with their runs.
    """
    file = out / f".stop-{uuid.uuid4().hex}"

    def stop(number: int, frame: FrameType | None) -> None:
        file.touch()
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield file
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def engine(options: argparse.Namespace) -> Iterator[tuple[Any, int]]:
    """Starts Ray and gives the number of runs at a time. Refuses a cluster that does not answer, and too few GPUs."""
    import ray

    address = options.address or "local"
    settings: dict[str, Any] = {"address": address, "logging_level": logging.ERROR, "log_to_driver": False}
    if not options.address:
        here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        settings |= {"num_cpus": max(here, (options.jobs or 1) * options.cpus_per_run), "include_dashboard": False}
        settings |= {"object_store_memory": 100 * 2**20}  # bytes; only exit codes are sent through it
    with refusing(f"--address={address}: Ray does not start: ", OSError, OverflowError, ValueError, RuntimeError):
        if found := re.fullmatch(r"([\w.-]+):(\d+)", address):
            socket.create_connection((found[1], int(found[2])), timeout=10).close()  # Ray itself waits for minutes
        ray.init(**settings)
    try:
        there = ray.cluster_resources()
        if not options.address and there.get("GPU", 0) < options.gpus_per_run:
            raise InputError(f"--gpus-per-run={options.gpus_per_run}: there are {there.get('GPU', 0):g} here")
        yield ray, options.jobs or max(int(there.get("CPU", 1)) // options.cpus_per_run, 1)
    finally:
        ray.shutdown()


def run_all(runs: list[Run], manifest: Manifest, options: argparse.Namespace) -> bool:
    """Runs what is not done, a limited number at a time; returns whether a signal stopped it."""
    view = View(runs, manifest)
    with engine(options) as (ray, jobs), stop_file(manifest.file.parent) as stop, view.shown() as look:
        task = ray.remote(num_cpus=options.cpus_per_run, num_gpus=options.gpus_per_run, max_retries=0)(execute)
        waiting = deque(run for run in runs if manifest.state(run) != "done")
        active: dict[Any, tuple[Run, float]] = {}
        while active or (waiting and not stop.exists()):
            while waiting and len(active) < jobs and not stop.exists():
                run = waiting.popleft()
                arguments = (run.command, run.folder, stop, Path.cwd(), options.cpus_per_run)
                active[task.remote(*arguments, options.gpus_per_run > 0)] = (run, time.monotonic())
                manifest.started(run)
            look()
            for ended in ray.wait(list(active), timeout=POLL_S)[0]:
                run, start = active.pop(ended)
                try:
                    exit_code, wall_s = ray.get(ended)
                    manifest.ended(run, exit_code, wall_s, stop.exists())
                except ray.exceptions.RayError as error:
                    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                    manifest.ended(run, None, time.monotonic() - start, stop.exists(), f"Ray lost it: {reason}")
            look()
        return stop.exists()


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Locks the sweep's folder. Refuses one that another sweep uses, since both would train the same runs."""
    with refusing(f"--out={out}: ", OSError):
        out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"--out={out}: another dqs-sweep is at work there") from error
        yield


def check_commands(file: Path, runs: list[Run]) -> None:
    """Parses the command line of each task and variant as dqs-fit does; an error names the task and the variant."""
    from dqs_lightning.cli.training import Rehearsal
    from dqs_lightning.cli.trust import restrict_imports

    for family, run in {run.name.rpartition("/")[0]: run for run in runs}.items():
        with refusing(f"{file}: {family}: ", InputError):
            restrict_imports(())
            Rehearsal(run.command[1:])


def sweep(options: argparse.Namespace) -> int:
    """Runs or prints the sweep; returns the exit code."""
    out = (options.out or Path("runs") / "sweeps" / options.file.stem).absolute()
    file = find(options.file)
    runs = expand(file, out)
    check_commands(file, runs)
    if options.dry_run:
        Manifest(out, runs)  # refuses to mix two runs
        print_all("\n".join(shlex.join(run.command) for run in runs))
        return DONE
    if importlib.util.find_spec("ray") is None:
        raise InputError('Ray is not installed; run pip install "dqs-lightning[sweep]", or use --dry-run')
    with alone(out):
        manifest = Manifest(out, runs)
        manifest.describe({"file": str(file), **read_sweep(file)}, about("dqs-sweep"))
        waiting = any(manifest.state(run) != "done" for run in runs)
        stopped = waiting and run_all(runs, manifest, options)
    states = Counter[str](manifest.state(run) for run in runs)
    counts = ", ".join(f"{states[state]} {state}" for state in reversed(COLOURS) if states[state])
    print(f"{manifest.file}  {counts}")
    if stopped and states["done"] < len(runs):
        return STOPPED
    return FAILED if states["failed"] else STOPPED if states["stopped"] else DONE


@reported("dqs-sweep")
def main(arguments: Sequence[str] | None = None) -> int:
    """Console entry point."""
    return sweep(parse(arguments))


if __name__ == "__main__":
    sys.exit(main())
