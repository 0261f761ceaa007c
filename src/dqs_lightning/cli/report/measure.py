"""What a report is about: the choices of its command line, checked against the runs, and what is computed."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.escape import printable
from dqs_lightning.cli.provenance import without_place
from dqs_lightning.cli.report.aggregates import Aggregate, aggregate
from dqs_lightning.cli.report.decisions import Decisions, time_decisions
from dqs_lightning.cli.report.files import MANIFEST, SCORES, Run, states
from dqs_lightning.cli.report.published import choose
from dqs_lightning.cli.report.runs import find_files
from dqs_lightning.cli.report.statistics import at, tidy

MOST = 200
"""Tasks, and methods, of one report."""


@dataclass(frozen=True)
class Report:
    """What a report is about, and what is computed from it.

    Attributes:
        runs: by task, method and seed; `scores` are their evaluations, of `statistics.tidy`.
        frames: of the tables; `chosen` where `--frames` chose them. `points` are the runs there, of `statistics.at`.
        aggregates: one for each of the frames at which methods can be compared, with the `baseline`.
        max_return: divides the returns.
        published: rows to draw, of `published.choose`.
        unscored: runs of a sweep that have not been evaluated once, as NAME (STATE).
        decisions: what a decision of each method takes; empty without `--time-actions`.
        command: without the places of this machine.
    """

    runs: Sequence[Run]
    scores: pd.DataFrame
    frames: Sequence[int]
    chosen: bool
    points: pd.DataFrame
    aggregates: Sequence[Aggregate]
    baseline: str
    max_return: float
    published: pd.DataFrame
    unscored: Sequence[str]
    decisions: Decisions
    command: str


def measure(runs: Sequence[Run], options: argparse.Namespace, command: Sequence[str] = ()) -> Report:
    """Check what the command line chose, and compute everything of a report but its pictures.

    Raises:
        InputError: when it chose what is not there, or there are too many tasks or methods.
    """
    scores = tidy(runs)
    methods, tasks = list(scores["method"].unique()), list(scores["task"].unique())
    for name, found in (("tasks", tasks), ("methods", methods)):
        if len(found) > MOST:
            raise InputError(f"RUNS: {len(found)} {name}; a report has room for {MOST}")
    frames, baseline = choose_frames(options.frames, scores), choose_baseline(options.baseline, methods)
    points = at(scores, frames)
    compared = [aggregate(points[points["frames"] == one], baseline, options.max_return) for one in frames]
    return Report(
        runs=runs,
        scores=scores,
        frames=frames,
        chosen=options.frames is not None,
        points=points,
        aggregates=[one for one in compared if one],
        baseline=baseline,
        max_return=options.max_return,
        published=choose(options.published, scores.groupby("task", sort=False)["frames"].max().to_dict()),
        unscored=_without_scores(options.runs),
        decisions=time_decisions(runs, options.trust) if options.time_actions else {},
        command=printable(without_place(command), longest=None),
    )


def choose_frames(asked: Sequence[int] | None, scores: pd.DataFrame) -> list[int]:
    """Return the frames of the tables: those of `--frames`, or the last that all runs reached.

    Raises:
        InputError: when no run was evaluated both at or before and at or after a number of `--frames`.
    """
    spans = scores.groupby(["task", "method", "seed"])["frames"].agg(["min", "max"])
    for frames in asked or ():
        if not ((spans["min"] <= frames) & (frames <= spans["max"])).any():
            first, last = spans["min"].min(), spans["max"].max()
            raise InputError(f"--frames={frames}: no run was evaluated there; allowed is {first:.0f} to {last:.0f}")
    return sorted(set(asked)) if asked is not None else [int(spans["max"].min())]


def choose_baseline(asked: str | None, methods: Sequence[str]) -> str:
    """Return the method of `--baseline`, or SAC where it is there, or the first.

    Raises:
        InputError: when the one of `--baseline` is not there.
    """
    if asked is not None and asked not in methods:
        raise InputError(f"--baseline={asked}: no such method; allowed is one of {', '.join(methods)}")
    return asked or next((method for method in methods if method.lower() == "sac"), methods[0])


def _without_scores(given: Sequence[Path]) -> list[str]:
    manifests = [file for path in given for file in find_files(path, MANIFEST)]
    runs = [(file.parent / name / SCORES, name, state) for file in manifests for name, state in states(file).items()]
    return list(dict.fromkeys(f"{printable(name)} ({state})" for scores, name, state in runs if not scores.is_file()))
