"""What a report says over tasks, all of it computed by rliable: IQM, optimality gap, improvement and profiles.

The 95 % intervals are rliable's stratified bootstrap over seeds: each task's seeds are drawn anew, the tasks stay.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dqs_lightning.cli.report.scores import Floats

REPS = 1000
"""Bootstrap samples of an interval."""

Returns = Mapping[str, Mapping[str, Sequence[float]]]
"""One return a seed, by method and task."""


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval, which one seed does not have."""

    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Aggregate:
    """Methods over tasks at a number of frames, returns divided by the greatest one that is possible.

    Attributes:
        frames: of training.
        tasks: those on which every method was evaluated.
        seeds: of each task, by method: as many as its scarcest task has.
        iqm: interquartile mean over seeds and tasks, by method.
        gap: optimality gap, the mean shortfall from 1, by method.
        baseline: with which the others are compared.
        improvement: probability that a seed's return is above the baseline's, mean over tasks, by method.
        levels: returns [levels] of the profiles.
        profiles: share of seeds and tasks above each level [levels], by method.
        bands: 95 % intervals [2, levels] of the profiles, by method of several seeds.
    """

    frames: int
    tasks: tuple[str, ...]
    seeds: dict[str, int]
    iqm: dict[str, Estimate]
    gap: dict[str, Estimate]
    baseline: str
    improvement: dict[str, Estimate]
    levels: Floats
    profiles: dict[str, Floats]
    bands: dict[str, Floats]


def shared_tasks(returns: Returns) -> tuple[str, ...]:
    """The tasks on which every method has a return."""
    every = dict.fromkeys(task for tasks in returns.values() for task in tasks)
    return tuple(sorted(task for task in every if all(task in tasks for tasks in returns.values())))


def aggregate(frames: int, returns: Returns, baseline: str, max_return: float, reps: int = REPS) -> Aggregate | None:
    """Compare methods over the tasks that all of them share; None where they share none.

    Args:
        frames: of training, where the returns were taken.
        returns: by method and task, one a seed.
        baseline: one of the methods.
        max_return: what a return is divided by.
        reps: bootstrap samples.
    """
    tasks = shared_tasks(returns)
    if not tasks:
        return None
    with _rliable() as (library, metrics):
        scores = {method: _matrix(by_task, tasks) / max_return for method, by_task in returns.items()}

        def estimate(function: Callable[..., float], key: Any) -> Estimate:
            single = any(len(matrix) < 2 for matrix in (key if isinstance(key, list) else [key]))
            values, intervals = library.get_interval_estimates(
                {"": key}, _as_array(function), reps=1 if single else reps
            )
            low, high = intervals[""][:, 0]
            return Estimate(float(values[""][0]), None if single else (float(low), float(high)))

        everything = np.concatenate([matrix.ravel() for matrix in scores.values()])
        levels = np.linspace(min(0.0, everything.min()), max(1.0, everything.max()), 101)
        several = any(len(matrix) > 1 for matrix in scores.values())  # one seed has no band
        profiles, bands = library.create_performance_profile(scores, levels, reps=reps if several else 1)
        return Aggregate(
            frames=frames,
            tasks=tasks,
            seeds={method: len(matrix) for method, matrix in scores.items()},
            iqm={method: estimate(metrics.aggregate_iqm, matrix) for method, matrix in scores.items()},
            gap={method: estimate(metrics.aggregate_optimality_gap, matrix) for method, matrix in scores.items()},
            baseline=baseline,
            improvement={
                method: estimate(metrics.probability_of_improvement, [matrix, scores[baseline]])
                for method, matrix in scores.items()
                if method != baseline
            },
            levels=levels,
            profiles=profiles,
            bands={method: band for method, band in bands.items() if len(scores[method]) > 1},
        )


def _matrix(by_task: Mapping[str, Sequence[float]], tasks: Sequence[str]) -> Floats:
    """Returns [seeds, tasks]; tasks with more seeds than the scarcest give their first ones."""
    count = min(len(by_task[task]) for task in tasks)
    return np.array([by_task[task][:count] for task in tasks], dtype=np.float64).T


def _as_array(function: Callable[..., float]) -> Callable[..., Floats]:
    return lambda *matrices: np.array([function(*matrices)])


@contextlib.contextmanager
def _rliable() -> Iterator[tuple[Any, Any]]:
    """Its modules. It draws from numpy's global state whatever it is given: the same report draws the same."""
    from rliable import library, metrics

    state = np.random.get_state()
    np.random.seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # p-values of equal returns, unread
            yield library, metrics
    finally:
        np.random.set_state(state)
