"""Runs the processes of a sweep through Ray, a limited number at a time."""

import argparse
import contextlib
import logging
import os
import re
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # a run is as fast as one by hand; Ray's default is 15

from dqs_lightning.cli.errors import InputError, refusing
from dqs_lightning.cli.sweep_manifest import Manifest, View
from dqs_lightning.cli.sweep_plan import Run
from dqs_lightning.cli.sweep_process import STOP, execute

POLL_S = 1.0
"""Seconds between two checks of the runs."""


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


class Plan(Protocol):
    """What a sweep runs, and in which order."""

    runs: list[Run]
    """Runs so far; a search adds more."""

    def next(self) -> Run | None:
        """Returns the run that is to be started next; None if there is none, now and later."""

    def watch(self) -> None:
        """Is called while runs are active."""

    def ended(self, run: Run) -> None:
        """Is called when a run's process has ended, after the manifest has recorded it."""

    def unfinished(self) -> bool:
        """Whether there is a run to start."""

    def report(self) -> str:
        """Writes the files that summarise the sweep; returns what is printed at its end."""

    def preview(self) -> str:
        """Returns what a dry run prints."""


def run_all(plan: Plan, manifest: Manifest, options: argparse.Namespace) -> bool:
    """Runs what is not done, a limited number at a time; returns whether a signal stopped it."""
    view = View(plan.runs, manifest)
    with engine(options) as (ray, jobs), stop_file(manifest.file.parent) as stop, view.shown() as look:
        task = ray.remote(num_cpus=options.cpus_per_run, num_gpus=options.gpus_per_run, max_retries=0)(execute)
        active: dict[Any, tuple[Run, float]] = {}
        while True:
            while len(active) < jobs and not stop.exists() and (run := plan.next()) is not None:
                (run.folder / STOP).unlink(missing_ok=True)
                manifest.started(run)
                arguments = (run.command, run.folder, stop, Path.cwd(), options.cpus_per_run)
                active[task.remote(*arguments, options.gpus_per_run > 0)] = (run, time.monotonic())
            if not active:
                return stop.exists()
            look()
            for ended in ray.wait(list(active), timeout=POLL_S)[0]:
                run, start = active.pop(ended)
                try:
                    exit_code, wall_s = ray.get(ended)
                    manifest.ended(run, exit_code, wall_s, stop.exists())
                except ray.exceptions.RayError as error:
                    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                    manifest.ended(run, None, time.monotonic() - start, stop.exists(), f"Ray lost it: {reason}")
                plan.ended(run)
                (run.folder / STOP).unlink(missing_ok=True)
            plan.watch()
            look()
