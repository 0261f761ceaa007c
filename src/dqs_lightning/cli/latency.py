"""Measures the latency of calls."""

import statistics
import timeit
from collections.abc import Callable


def latencies(*calls: Callable[[], object], repeats: int = 50) -> list[float]:
    """Returns the median milliseconds of each call; they take turns, so a change of the machine's speed affects all."""
    seconds = [[timeit.timeit(call, number=1) for call in calls] for _ in range(repeats)]
    return [1e3 * statistics.median(times) for times in zip(*seconds, strict=True)]
