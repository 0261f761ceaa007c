"""What a report says of one task: curves and tables over seeds. Intervals are Student's, over seeds.

Between two evaluations a run's return, updates and seconds are taken to lie on a straight line; outside of its first
and last evaluation a run says nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import t as student_t

from dqs_lightning.cli.report.runs import Run
from dqs_lightning.cli.report.scores import Floats, Scores

Axis = Literal["frames", "updates", "wall_s"]
Groups = Mapping[str, Mapping[str, Sequence[Run]]]
"""Runs by task and method."""
SHORTEST_S = 1e-3
"""Seconds from which on a rate is meaningful."""


@dataclass(frozen=True)
class Curve:
    """Mean return over seeds; arrays are [points].

    Attributes:
        x: where, rising: every point at which a seed was evaluated, within what all of them reached.
        mean: over seeds.
        low: lower end of the 95 % interval; None for one seed.
        high: upper end of the 95 % interval; None for one seed.
        seeds: how many.
    """

    x: Floats
    mean: Floats
    low: Floats | None
    high: Floats | None
    seeds: int


@dataclass(frozen=True)
class Score:
    """A method on a task at a number of frames, over the seeds that were evaluated there.

    Attributes:
        task: which.
        method: which.
        frames: of training.
        returns: one a seed.
        mean: over seeds.
        std: over seeds, divided by their number less one; None for one seed.
        interval: 95 %, Student's; None for one seed.
        updates: gradient steps by then, mean over seeds.
        wall_s: seconds by then, evaluations included, mean over seeds.
    """

    task: str
    method: str
    frames: int
    returns: tuple[float, ...]
    mean: float
    std: float | None
    interval: tuple[float, float] | None
    updates: float
    wall_s: float


@dataclass(frozen=True)
class Cost:
    """What a method's training costs on a task, between a run's first and last evaluation, these included.

    Attributes:
        task: which.
        method: which.
        seconds_per_1000: wall seconds for 1000 updates, one a seed.
        frames_per_s: environment frames a second, one a seed.
    """

    task: str
    method: str
    seconds_per_1000: tuple[float, ...]
    frames_per_s: tuple[float, ...]


def interval(values: Floats) -> tuple[Floats, Floats]:
    """Student's 95 % interval of the mean over the first axis: values [seeds, ...] to low and high [...].

    Raises:
        ValueError: for fewer than two seeds, which have none.
    """
    count = len(values)
    if count < 2:
        raise ValueError(f"seeds={count}: an interval needs 2 or more")
    half = student_t.ppf(0.975, count - 1) * values.std(axis=0, ddof=1) / np.sqrt(count)
    return values.mean(axis=0) - half, values.mean(axis=0) + half


def curve(runs: Sequence[Run], axis: Axis) -> Curve:
    """The mean return of a method's seeds along an axis."""
    points = [along(run.scores, axis) for run in runs]
    first, last = max(x[0] for x, _ in points), min(x[-1] for x, _ in points)
    x = np.unique(np.concatenate([x for x, _ in points]))
    x = x[(first <= x) & (x <= last)]
    values = np.stack([np.interp(x, own, returns) for own, returns in points])
    low, high = interval(values) if len(runs) > 1 else (None, None)
    return Curve(x, values.mean(axis=0), low, high, len(runs))


def along(scores: Scores, axis: Axis) -> tuple[Floats, Floats]:
    """Places on an axis, strictly rising, and returns; of several evaluations at one place the last counts."""
    x: Floats = getattr(scores, axis)
    kept = np.append(np.diff(x) > 0, True)
    return x[kept], scores.returns[kept]


def score(task: str, method: str, runs: Sequence[Run], frames: int) -> Score | None:
    """A method's returns at a number of frames; None when none of its runs was evaluated around it."""
    there = [run.scores for run in runs if run.scores.frames[0] <= frames <= run.scores.frames[-1]]
    if not there:
        return None
    returns, updates, wall_s = (
        np.array([np.interp(frames, one.frames, getattr(one, name)) for one in there])
        for name in ("returns", "updates", "wall_s")
    )
    several = len(returns) > 1
    low, high = interval(returns) if several else (0.0, 0.0)
    return Score(
        task=task,
        method=method,
        frames=frames,
        returns=tuple(returns.tolist()),
        mean=float(returns.mean()),
        std=float(returns.std(ddof=1)) if several else None,
        interval=(float(low), float(high)) if several else None,
        updates=float(updates.mean()),
        wall_s=float(wall_s.mean()),
    )


def cost(task: str, method: str, runs: Sequence[Run]) -> Cost:
    """What 1000 updates and a frame took; a run of one evaluation, or without updates, says nothing."""
    seconds, rates = [], []
    for scores in (run.scores for run in runs):
        frames, updates, wall_s = (float(x[-1] - x[0]) for x in (scores.frames, scores.updates, scores.wall_s))
        if wall_s >= SHORTEST_S and updates > 0:
            seconds.append(1000 * wall_s / updates)
        if wall_s >= SHORTEST_S:
            rates.append(frames / wall_s)
    return Cost(task, method, tuple(seconds), tuple(rates))
