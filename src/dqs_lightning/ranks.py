"""Reductions over the ranks of a run. `Strategy.reduce` has a barrier before each, which costs as much again."""

from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor


def mean_over_ranks(value: Tensor) -> Tensor:
    """Returns the mean of a floating-point tensor over all ranks, which must all call it; without ranks the tensor."""
    return start_mean_over_ranks(value)()


def max_over_ranks(value: Tensor) -> Tensor:
    """Returns the largest of a tensor's elements over all ranks, as `mean_over_ranks`."""
    return start_max_over_ranks(value)()


def start_mean_over_ranks(value: Tensor) -> Callable[[], Tensor]:
    """Starts `mean_over_ranks`; returns a function that waits for it and returns its result.

    A reduction that runs beside the backward pass costs no wait for the slowest rank.
    """
    if not several():
        return lambda: value
    wait = _start(value, dist.ReduceOp.SUM)  # gloo has no mean
    return lambda: wait() / dist.get_world_size()


def start_max_over_ranks(value: Tensor) -> Callable[[], Tensor]:
    """Starts `max_over_ranks`, as `start_mean_over_ranks`."""
    return _start(value, dist.ReduceOp.MAX) if several() else lambda: value


def _start(value: Tensor, operation: dist.ReduceOp.RedOpType) -> Callable[[], Tensor]:
    reduced = value.detach().clone()
    work = dist.all_reduce(reduced, operation, async_op=True)

    def wait() -> Tensor:
        work.wait()
        return reduced

    return wait


def several() -> bool:
    """Whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
