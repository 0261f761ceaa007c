"""Checks the choices of a report's command line against its runs, and computes what it contains."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

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
    """What a report is about, and what is computed for it."""

    options: argparse.Namespace
    command: str  # without the places of this machine
    runs: Sequence[Run]  # by task, method and seed
    scores: pd.DataFrame  # their evaluations, see `statistics.tidy`
    frames: Sequence[int]  # of the tables
    points: pd.DataFrame  # the runs at those frames, see `statistics.at`
    baseline: str
    aggregates: Sequence[Aggregate]  # one for each of the frames at which methods can be compared
    published: pd.DataFrame  # rows to draw, see `published.choose`
    unscored: Sequence[str]  # runs of a sweep that were not evaluated once, as NAME (STATE)
    decisions: Decisions  # empty without --time-actions


def measure(runs: Sequence[Run], options: argparse.Namespace, command: Sequence[str] = ()) -> Report:
    """Checks the choices of the command line against the runs, and computes everything but the pictures.

    Raises:
        InputError: when they name what is not there, or there are too many tasks or methods.
    """
    scores = tidy(runs)
    methods = list(scores["method"].unique())
    for name, count in (("tasks", scores["task"].nunique()), ("methods", len(methods))):
        if count > MOST:
            raise InputError(f"RUNS: {count} {name}; a report has room for {MOST}")
    frames, baseline = choose_frames(options.frames, scores), choose_baseline(options.baseline, methods)
    points = at(scores, frames)
    compared = [aggregate(points[points["frames"] == one], baseline, options.max_return) for one in frames]
    sweeps = [(file.parent, states(file)) for path in options.runs for file in find_files(path, MANIFEST)]
    names = [(folder / name / SCORES, name, state) for folder, found in sweeps for name, state in found.items()]
    unscored = [f"{printable(name)} ({state})" for file, name, state in names if not file.is_file()]
    return Report(
        options=options,
        command=printable(without_place(command), longest=None),
        runs=runs,
        scores=scores,
        frames=frames,
        points=points,
        baseline=baseline,
        aggregates=[one for one in compared if one],
        published=choose(options.published, scores.groupby("task", sort=False)["frames"].max().to_dict()),
        unscored=list(dict.fromkeys(unscored)),
        decisions=time_decisions(runs, options.trust) if options.time_actions else {},
    )


def choose_frames(asked: Sequence[int] | None, scores: pd.DataFrame) -> list[int]:
    """Returns the frames of the tables: those of `--frames`, or the last that all runs reached.

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
    """Returns the method of `--baseline`, or SAC where it is there, or the first.

    Raises:
        InputError: when the one of `--baseline` is not there.
    """
    if asked is not None and asked not in methods:
        raise InputError(f"--baseline={asked}: no such method; allowed is one of {', '.join(methods)}")
    return asked or next((method for method in methods if method.lower() == "sac"), methods[0])
