"""Runs the processes of a sweep through Ray, a limited number at a time."""

import argparse
import contextlib
import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from dqs_lightning.cli.errors import InputError, refusing
from dqs_lightning.cli.sweep_manifest import Manifest, View
from dqs_lightning.cli.sweep_plan import Run
from dqs_lightning.cli.sweep_process import STOP, Result, execute, write
from dqs_lightning.collection.cluster import connect

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
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with refusing("--address=", ConnectionError):
        ray = connect(options.address, max(here, (options.jobs or 1) * options.cpus_per_run))
    try:
        there = ray.cluster_resources()
        if not options.address and there.get("GPU", 0) < options.gpus_per_run:
            raise InputError(f"--gpus-per-run={options.gpus_per_run}: there are {there.get('GPU', 0):g} here")
        yield ray, options.jobs or max(int(there.get("CPU", 1)) // options.cpus_per_run, 1)
    finally:
        ray.shutdown()


def why(error: Exception) -> str:
    """Returns the last line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


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

        def begin(run: Run) -> Any:
            arguments = (run.command, run.folder, stop, Path.cwd(), options.cpus_per_run)
            return task.remote(*arguments, options.gpus_per_run > 0)

        while True:
            while len(active) < jobs and not stop.exists() and (run := plan.next()) is not None:
                (run.folder / STOP).unlink(missing_ok=True)
                manifest.started(run)
                active[begin(run)] = run, time.monotonic()
            if not active:
                return stop.exists()
            look()
            for ended in ray.wait(list(active), timeout=POLL_S)[0]:
                run, start = active.pop(ended)
                try:
                    result: Result = ray.get(ended)
                    write(result.files, run.folder)
                    manifest.ended(run, result.exit_code, result.wall_s, stop.exists(), continued=result.continued)
                except ray.exceptions.RayError as error:
                    wall_s, reason = time.monotonic() - start, why(error)
                    if not isinstance(error, ray.exceptions.RayTaskError) and manifest.lost(run, wall_s, reason):
                        active[begin(run)] = run, time.monotonic()
                        continue
                    manifest.ended(run, None, wall_s, stop.exists(), f"Ray lost it: {reason}")
                plan.ended(run)
                (run.folder / STOP).unlink(missing_ok=True)
            plan.watch()
            look()
