"""Measures the latency of calls."""

import statistics
import time
from collections.abc import Callable


def latencies(*calls: Callable[[], object], repeats: int = 50) -> list[float]:
    """Returns the median milliseconds of each call; they take turns, so a change of the machine's speed affects all."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, times in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return [1e3 * statistics.median(times) for times in seconds]
