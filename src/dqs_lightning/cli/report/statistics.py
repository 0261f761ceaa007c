"""The tidy table of a report, a row an evaluation, and what is computed from it for each task and method.

Between two evaluations a run's return, updates and seconds are interpolated linearly; outside of its first and last
evaluation a run has no value. Intervals are Student's, over seeds.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from dqs_lightning.cli.report.files import KEYS, ROW, Run

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
    """Averages the return over the seeds of one task and method along an axis.

    Returns:
        Columns mean, low and high, NaN for one seed, at every point at which a seed was evaluated, within what all of
        them reached; of several evaluations of a seed at one point the last counts.
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

    Returns:
        Columns seeds, mean, std (over seeds, divided by their number less one), low, high, and the means of updates
        and wall_s; std, low and high are NaN for one seed.
    """
    of_return = {name: ("return", name) for name in ("size", "mean", "std")}
    groups = points.groupby(["task", "frames", "method"], sort=False)
    table = groups.agg(**of_return, updates=("updates", "mean"), wall_s=("wall_s", "mean")).reset_index()
    table = table.rename(columns={"size": "seeds"}).sort_values(["task", "frames"], kind="stable", ignore_index=True)
    half = half_width(table["std"], table["seeds"])
    return table.assign(low=table["mean"] - half, high=table["mean"] + half)


def costs(scores: pd.DataFrame) -> pd.DataFrame:
    """Returns what each run took from its first to its last evaluation, these included.

    Returns:
        Columns `KEYS`, seconds_per_1000 (updates) and frames_per_s; NaN for a run of one evaluation, and where there
        was no update.
    """
    runs = scores.groupby(list(KEYS), sort=False)[["frames", "updates", "wall_s"]]
    took = (runs.last() - runs.first()).reset_index()
    seconds = took["wall_s"].where(took["wall_s"] >= SHORTEST_S)
    per_1000 = 1000 * seconds / took["updates"].where(took["updates"] > 0)
    return took[list(KEYS)].assign(seconds_per_1000=per_1000, frames_per_s=took["frames"] / seconds)
