"""What the commands set and measure on the machine that they run on: threads, memory that is kept, and latencies."""

import ctypes
import logging
import os
import statistics
import sys
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

WEIGHTS_PER_THREAD = 2**19
"""Weights of a linear layer for each thread that shortens its product with a batch (docs/performance.md)."""
QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Where Linux says how much CPU time in each period a control group, such as a container's, may use."""
KEPT_BYTES = 2**30
"""Bytes that malloc keeps when they are freed, instead of giving them back to the system."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""


def keep_freed_memory() -> None:
    """Lets malloc keep freed memory, so that each update does not map its large tensors anew; of glibc alone.

    MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_, where they are set, take precedence.
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return
    for name, parameter in (("MALLOC_TRIM_THRESHOLD_", M_TRIM_THRESHOLD), ("MALLOC_MMAP_THRESHOLD_", M_MMAP_THRESHOLD)):
        if name not in os.environ:
            libc.mallopt(parameter, KEPT_BYTES)


def available_cores() -> int:
    """Returns the number of cores that this process may use: its affinity, and the CPU quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text().split()
        return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):  # another system, or another version of control groups
        return cores


def threads_for(module: "nn.Module", cores: int) -> int:
    """Returns the number of torch threads for networks: at most `cores`, and one for small networks.

    A second thread gains nothing for small ones, and slows them down several times where another process uses its core.
    """
    widest = max((parameter.numel() for parameter in module.parameters() if parameter.ndim == 2), default=0)
    return max(1, min(cores, widest // WEIGHTS_PER_THREAD))


def set_threads(threads: int | None, module: "nn.Module", processes: int = 1) -> int:
    """Sets and returns the number of torch threads of this process.

    Args:
        threads: the number that was asked for; None: OMP_NUM_THREADS, or without it `threads_for` the networks.
        module: the networks.
        processes: such processes on this machine, which share its cores; >= 1.
    """
    import torch

    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        cores = available_cores()
        threads = threads_for(module, max(1, cores // processes))
        log.info("torch threads: %d (cores: %d); --threads sets another number", threads, cores)
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def show_log() -> None:
    """Writes the log lines of this package to stderr, from level INFO on, without any prefix."""
    package = logging.getLogger("dqs_lightning")
    if not package.handlers:
        package.addHandler(logging.StreamHandler())
        package.setLevel(logging.INFO)
        package.propagate = False


def latencies(*calls: Callable[[], object], repeats: int = 50) -> list[float]:
    """Returns the median milliseconds of each call; they take turns, so a change of the machine's speed affects all."""
    seconds = [[timeit.timeit(call, number=1) for call in calls] for _ in range(repeats)]
    return [1e3 * statistics.median(times) for times in zip(*seconds, strict=True)]
