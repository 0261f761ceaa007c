"""The tidy table of a report, a row an evaluation, and what is computed from it for each task and method.

Between two evaluations a run's return, updates and seconds are interpolated linearly; outside of its first and last
evaluation a run has no value. Intervals of one task are Student's, over seeds. Over tasks they are rliable's
stratified bootstrap: the seeds of each task are resampled, the tasks are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from dqs_lightning.cli.report.files import KEYS, ROW, Run

REPS = 1000
"""Bootstrap samples of an interval."""
ESTIMATES = ("iqm", "gap", "better")
SHORTEST_S = 1e-3
"""Seconds from which on a rate is meaningful."""


def tidy(runs: Sequence[Run]) -> pd.DataFrame:
    """Returns all evaluations, in the order of the runs: columns `KEYS` and `ROW`."""
    rows = [[run.task, run.method, run.seed, *row] for run in runs for row in run.rows]
    return pd.DataFrame(rows, columns=[*KEYS, *ROW])


def half_width(std: pd.Series, seeds: pd.Series | int) -> pd.Series:
    """Returns half of the 95 % interval of a mean over seeds; NaN for one seed."""
    return student_t.ppf(0.975, seeds - 1) * std / np.sqrt(seeds)


def curve(scores: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Averages the return over the seeds of one task and method along an axis: columns mean, low and high.

    There is a row for every point at which a seed was evaluated, within what all of them reached; of several
    evaluations of a seed at one point the last counts. low and high are NaN for one seed.
    """
    last = scores.drop_duplicates(["seed", axis], keep="last")
    wide = last.pivot(index=axis, columns="seed", values="return")
    wide = wide.interpolate(method="index", limit_area="inside").dropna()
    mean, half = wide.mean(axis=1), half_width(wide.std(axis=1), wide.shape[1])
    return pd.DataFrame({"mean": mean, "low": mean - half, "high": mean + half})


def at(scores: pd.DataFrame, frames: Sequence[int]) -> pd.DataFrame:
    """Returns a row for each run and each of some frames between its first and last evaluation."""
    found = []
    for key, run in scores.groupby(list(KEYS), sort=False):
        x = run["frames"].to_numpy()
        inside = [point for point in frames if x[0] <= point <= x[-1]]
        values = {name: np.interp(inside, x, run[name]) for name in ("return", "updates", "wall_s")}
        found.append(pd.DataFrame({**dict(zip(KEYS, key, strict=True)), "frames": inside, **values}))
    return pd.concat(found, ignore_index=True)


def summary(points: pd.DataFrame) -> pd.DataFrame:
    """Summarises rows of `at` over seeds, a row for each task, frames and method.

    Columns are seeds, mean, std (over seeds, divided by their number less one), low, high, and the means of updates and
    wall_s; std, low and high are NaN for one seed.
    """
    of_return = {name: ("return", name) for name in ("size", "mean", "std")}
    groups = points.groupby(["task", "frames", "method"], sort=False)
    table = groups.agg(**of_return, updates=("updates", "mean"), wall_s=("wall_s", "mean")).reset_index()
    table = table.rename(columns={"size": "seeds"}).sort_values(["task", "frames"], kind="stable", ignore_index=True)
    half = half_width(table["std"], table["seeds"])
    return table.assign(low=table["mean"] - half, high=table["mean"] + half)


def costs(scores: pd.DataFrame) -> pd.DataFrame:
    """Returns what each run took from its first to its last evaluation: seconds_per_1000 (updates) and frames_per_s.

    They are NaN for a run of one evaluation, and where there was no update.
    """
    runs = scores.groupby(list(KEYS), sort=False)[["frames", "updates", "wall_s"]]
    took = (runs.last() - runs.first()).reset_index()
    seconds = took["wall_s"].where(took["wall_s"] >= SHORTEST_S)
    per_1000 = 1000 * seconds / took["updates"].where(took["updates"] > 0)
    return took[list(KEYS)].assign(seconds_per_1000=per_1000, frames_per_s=took["frames"] / seconds)


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

    `points` are rows of `at` at one number of frames; `max_return` divides the returns; `reps` are bootstrap samples.
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
