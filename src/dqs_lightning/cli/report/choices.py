"""What the command line of a report chose, checked against the runs that there are."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.report.decisions import Decisions
from dqs_lightning.cli.report.published import Published
from dqs_lightning.cli.report.statistics import Groups


@dataclass(frozen=True)
class Choices:
    """The choices of one report.

    Attributes:
        frames: of the tables.
        chosen: whether the frames were asked for.
        baseline: a method.
        max_return: what returns are divided by.
        published: rows to draw, by task.
        unscored: runs of a sweep that have not been evaluated once.
        command: without the places of this machine.
        decisions: what a decision of each method takes; empty where that was not asked for.
    """

    frames: Sequence[int]
    chosen: bool
    baseline: str
    max_return: float
    published: Mapping[str, Sequence[Published]]
    unscored: Sequence[str]
    command: str
    decisions: Decisions


def names_of(given: Sequence[str]) -> dict[Path, str]:
    """METHOD or TASK/METHOD by path.

    Raises:
        InputError: when one is not PATH=METHOD or PATH=TASK/METHOD.
    """
    names = {}
    for text in given:
        path, _, name = text.rpartition("=")  # a run's folder may be called seed=0
        if not path or not re.fullmatch(r"[^/]+(/[^/]+)?", name):
            raise InputError(f"--name {text}: must be PATH=METHOD or PATH=TASK/METHOD")
        names[Path(path)] = name
    return names


def choose_frames(asked: Sequence[int] | None, groups: Groups) -> list[int]:
    """The frames of the tables: those asked for, or the last that all runs reached.

    Raises:
        InputError: when no run was evaluated both at or before and at or after a number that is asked for.
    """
    scores = [run.scores for methods in groups.values() for runs in methods.values() for run in runs]
    if asked is None:
        return [int(min(one.frames[-1] for one in scores))]
    for frames in asked:
        if not any(one.frames[0] <= frames <= one.frames[-1] for one in scores):
            first, last = min(one.frames[0] for one in scores), max(one.frames[-1] for one in scores)
            raise InputError(f"--frames={frames}: no run was evaluated there; allowed is {first:.0f} to {last:.0f}")
    return sorted(set(asked))


def choose_baseline(asked: str | None, methods: Sequence[str]) -> str:
    """The one asked for, or SAC where it is there, or the first.

    Raises:
        InputError: when the one asked for is not there.
    """
    if asked is not None:
        if asked not in methods:
            raise InputError(f"--baseline={asked}: no such method; allowed is one of {', '.join(methods)}")
        return asked
    return next((method for method in methods if method.lower() == "sac"), methods[0])
