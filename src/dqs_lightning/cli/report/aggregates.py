"""Methods compared over tasks by rliable: IQM, optimality gap, probability of improvement and performance profiles.

The 95 % intervals are rliable's stratified bootstrap over seeds: the seeds of each task are resampled, the tasks are
not.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

REPS = 1000
"""Bootstrap samples of an interval."""


@dataclass(frozen=True)
class Aggregate:
    """Methods over tasks at a number of frames, returns divided by the largest possible one.

    Attributes:
        tasks: those on which every method was evaluated.
        table: a row a method. Columns: seeds (of each task, as many as its scarcest task has), iqm, gap (optimality
            gap, the mean shortfall from 1), better (probability that a seed's return is above the baseline's, mean
            over tasks), and the ends of their intervals such as iqm_low and iqm_high; NaN where there is none.
        profiles: share of seeds and tasks above each level, by method: columns share, low and high, NaN for one seed.
    """

    frames: int
    tasks: list[str]
    baseline: str
    table: pd.DataFrame
    profiles: dict[str, pd.DataFrame]


def aggregate(points: pd.DataFrame, baseline: str, max_return: float, reps: int = REPS) -> Aggregate | None:
    """Compare methods over the tasks that all of them share; None where there are none.

    Args:
        points: rows of `statistics.at` at one number of frames.
        baseline: one of the methods.
        max_return: divides the returns.
        reps: bootstrap samples.
    """
    returns = points.groupby(["method", "task"], sort=False)["return"].agg(list)
    methods, every = points["method"].unique(), sorted(points["task"].unique())
    tasks = [task for task in every if all((method, task) in returns for method in methods)]
    if not tasks or baseline not in methods:
        return None
    scores = {}
    for method in methods:  # [seeds, tasks]; tasks with more seeds than the scarcest give their first ones
        of_tasks = [returns[method, task] for task in tasks]
        count = min(len(values) for values in of_tasks)
        scores[method] = np.array([values[:count] for values in of_tasks]).T / max_return
    with _rliable() as (library, metrics):

        def estimate(name: str, function: Callable[..., float], *given: Any) -> dict[str, float]:
            single = any(len(matrix) < 2 for matrix in given)
            values, intervals = library.get_interval_estimates(
                {"": list(given) if len(given) > 1 else given[0]}, lambda *x: np.array([function(*x)]),
                reps=1 if single else reps,
            )  # fmt: skip
            low, high = (np.nan, np.nan) if single else intervals[""][:, 0]
            return {name: float(values[""][0]), f"{name}_low": low, f"{name}_high": high}

        everything = np.concatenate([matrix.ravel() for matrix in scores.values()])
        levels = np.linspace(min(0.0, everything.min()), max(1.0, everything.max()), 101)
        several = any(len(matrix) > 1 for matrix in scores.values())
        shares, bands = library.create_performance_profile(scores, levels, reps=reps if several else 1)
        rows: dict[str, dict[str, float]] = {method: {"seeds": len(matrix)} for method, matrix in scores.items()}
        for name, function in (("iqm", metrics.aggregate_iqm), ("gap", metrics.aggregate_optimality_gap)):
            for method, matrix in scores.items():
                rows[method] |= estimate(name, function, matrix)
        for method in [method for method in rows if method != baseline]:
            rows[method] |= estimate("better", metrics.probability_of_improvement, scores[method], scores[baseline])
    profiles = {}
    for method, share in shares.items():
        low, high = bands[method] if len(scores[method]) > 1 else (np.nan, np.nan)
        profiles[method] = pd.DataFrame({"share": share, "low": low, "high": high}, index=levels)
    columns = ["seeds", *(f"{name}{end}" for name in ("iqm", "gap", "better") for end in ("", "_low", "_high"))]
    table = pd.DataFrame(rows.values(), index=list(rows), columns=columns)
    return Aggregate(int(points["frames"].iloc[0]), tasks, baseline, table, profiles)


@contextlib.contextmanager
def _rliable() -> Iterator[tuple[Any, Any]]:
    """Import its modules. It draws from numpy's global state, which is seeded here, so that a report is repeatable."""
    from rliable import library, metrics

    state = np.random.get_state()
    np.random.seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # p-values of equal returns, unread
            yield library, metrics
    finally:
        np.random.set_state(state)
