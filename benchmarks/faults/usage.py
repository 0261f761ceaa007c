"""Measures the resources of a run's processes: memory, open files, threads and shared memory."""

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SHARED = Path("/dev/shm")
KIB_PER_MIB = 1024.0


class Usage(NamedTuple):
    """Sums over processes.

    Attributes:
        memory_mib: resident memory that is not shared with other processes.
        shared_mib: resident shared memory.
        files: open file descriptors.
        threads: number of threads.
        entries: files of /dev/shm, including deleted ones, that are mapped or open.
    """

    memory_mib: float
    shared_mib: float
    files: float
    threads: float
    entries: float


def usage(pids: Sequence[int]) -> Usage:
    """Returns the current usage of processes, without those that have ended."""
    memory = shared = files = threads = 0.0
    entries: set[str] = set()
    for pid in pids:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            files += len(os.listdir(f"/proc/{pid}/fd"))
            entries |= shared_files(pid)
        except OSError:
            continue
        figures = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+)", status, re.MULTILINE)}
        memory += figures["RssAnon"] / KIB_PER_MIB
        shared += figures["RssShmem"] / KIB_PER_MIB
        threads += figures["Threads"]
    return Usage(memory, shared, files, threads, len(entries))


def shared_files(pid: int) -> set[str]:
    """Returns the files of /dev/shm that a process has mapped or open."""
    maps = re.findall(rf"({SHARED}/\S+)", Path(f"/proc/{pid}/maps").read_text())
    held = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            held.append(os.readlink(link))
    return {*maps, *(place for place in held if place.startswith(f"{SHARED}/"))}


class Slope(NamedTuple):
    """A least-squares line.

    Attributes:
        per_100k: change per 100,000 steps.
        error: its standard error, corrected for the lag-one autocorrelation of the residuals.
    """

    per_100k: float
    error: float

    def grows(self, limit: float) -> bool:
        """Whether it is more than two standard errors above zero and above a limit."""
        return self.per_100k > 2 * self.error and self.per_100k > limit


def slope(steps: Sequence[float], values: Sequence[float]) -> Slope:
    """Fits the slope of at least three values over environment steps."""
    x = np.asarray(steps) / 100_000
    y = np.asarray(values, float)
    x = x - x.mean()
    found = float(x @ y / (x @ x))
    residuals = y - y.mean() - found * x
    variance = float(residuals @ residuals / (len(x) - 2))
    power = float(residuals @ residuals)
    correlation = float(residuals[1:] @ residuals[:-1] / power) if power > 1e-12 else 0.0
    inflation = (1 + max(0.0, correlation)) / (1 - min(0.9, max(0.0, correlation)))
    return Slope(round(found, 4), round(float(np.sqrt(inflation * variance / (x @ x))), 4))


def summary(samples: Sequence[tuple[float, Any]], limits: dict[str, float]) -> tuple[list[str], dict[str, Any]]:
    """Returns problems and figures of samples (steps, Usage): each quantity's slope and its limit per 100,000 steps."""
    steps = [step for step, _ in samples]
    problems, figures = [], {}
    for name, limit in limits.items():
        values = [getattr(found, name) for _, found in samples]
        line = slope(steps, values)
        figures[name] = {
            "per_100k_steps": line.per_100k,
            "standard_error": line.error,
            "first": values[0],
            "last": values[-1],
        }
        if line.grows(limit):
            problems.append(f"{name} grows by {line.per_100k} (standard error {line.error}) in 100,000 steps")
    return problems, figures
