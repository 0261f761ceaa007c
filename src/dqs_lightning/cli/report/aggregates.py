"""Compares methods over tasks by rliable: IQM, optimality gap, probability of improvement and performance profiles.

The 95 % intervals are rliable's stratified bootstrap: the seeds of each task are resampled, the tasks are not.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd

REPS = 1000
"""Bootstrap samples of an interval."""
ESTIMATES = ("iqm", "gap", "better")


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
    """Compares methods over the tasks that all of them share; None where there are none.

    Args:
        points: rows of `statistics.at` at one number of frames.
        baseline: one of the methods.
        max_return: divides the returns.
        reps: bootstrap samples.
    """
    from rliable import library, metrics

    returns = points.groupby(["method", "task"])["return"].agg(list).unstack()
    returns = returns.reindex(points["method"].unique()).dropna(axis="columns")
    if returns.empty or baseline not in returns.index:
        return None
    scores = {}
    for method, of_tasks in returns.iterrows():  # [seeds, tasks]: of each task as many seeds as the scarcest one has
        seeds = min(map(len, of_tasks))
        scores[method] = np.array([values[:seeds] for values in of_tasks]).T / max_return
    everything = np.concatenate([matrix.ravel() for matrix in scores.values()])
    levels = np.linspace(min(0.0, everything.min()), max(1.0, everything.max()), 101)
    functions = metrics.aggregate_iqm, metrics.aggregate_optimality_gap, metrics.probability_of_improvement
    rows: dict[str, dict[str, float]] = {method: {"seeds": len(matrix)} for method, matrix in scores.items()}
    several = any(len(matrix) > 1 for matrix in scores.values())
    state = np.random.get_state()
    np.random.seed(0)  # rliable draws from numpy's global state; a report is repeatable
    try:
        shares, bands = library.create_performance_profile(scores, levels, reps=reps if several else 1)
        for (name, function), (method, matrix) in product(zip(ESTIMATES, functions, strict=True), scores.items()):
            given = [matrix, scores[baseline]] if name == "better" else [matrix]
            if name != "better" or method != baseline:
                single = min(map(len, given)) < 2
                values, ends = library.get_interval_estimates(
                    {name: given}, lambda *x, f=function: np.array([f(*x)]), reps=1 if single else reps
                )
                low, high = (np.nan, np.nan) if single else ends[name][:, 0]
                rows[method] |= {name: values[name][0], f"{name}_low": low, f"{name}_high": high}
    finally:
        np.random.set_state(state)
    profiles = {}
    for method, share in shares.items():
        low, high = bands[method] if len(scores[method]) > 1 else (np.nan, np.nan)
        profiles[method] = pd.DataFrame({"share": share, "low": low, "high": high}, index=levels)
    columns = ["seeds", *(f"{name}{end}" for name in ESTIMATES for end in ("", "_low", "_high"))]
    table = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=columns)
    return Aggregate(int(points["frames"].iloc[0]), list(returns), baseline, table, profiles)
