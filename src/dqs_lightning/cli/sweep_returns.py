"""Evaluation returns of the runs of a search: by frames, averaged over runs, and as a trial's value."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TypeAlias

from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.files import read_text
from dqs_lightning.cli.provenance import read_run

Curve: TypeAlias = "dict[int, float]"
"""Returns by environment frames."""
LARGEST = 1e100
"""Largest magnitude of a return."""


def total_frames(folder: Path) -> int | None:
    """Returns the frames of the whole run; None before it has started."""
    with contextlib.suppress(InputError):
        total: int | None = read_run(folder)["total_frames"]
        return total
    return None


def evaluations(folder: Path) -> Curve:
    """Returns the evaluations of a run so far, without the one before training; none where there is no such file.

    Evaluations are due every so many frames, and come at the end of the block in which these are reached. Their frames
    are rounded down to those, and are the total for the last one, so that those of several runs can be compared.
    """
    curve: Curve = {}
    with contextlib.suppress(InputError, KeyError, TypeError):
        facts = read_run(folder)
        every, total = int(facts["settings"]["evaluate"]["every_frames"]), facts["total_frames"]
        for line in read_text(folder / "scores.jsonl").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):  # half a line
                row = json.loads(line)
                frames, value = int(row["env_frames"]), float(row["return_mean"])
                if frames > 0 and abs(value) <= LARGEST:  # a number
                    curve[total if total and frames >= total else max(frames // every, 1) * every] = value
    return curve


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Returns the mean of curves at the frames that all of them have."""
    shared = set.intersection(*(set(curve) for curve in curves)) if curves else set()
    return {frames: fmean(curve[frames] for curve in curves) for frames in sorted(shared)}


def value_of(curves: Sequence[Curve], objective: str, num_tasks: int) -> tuple[float, float | None]:
    """Returns a trial's value, the mean over tasks and seeds, and its standard deviation over seeds.

    Args:
        curves: of its runs, seed by seed and within a seed task by task; none is empty.
        objective: one of `OBJECTIVES`.
        num_tasks: runs of a seed.

    Returns:
        The mean, and the standard deviation over seeds of the mean over tasks; None for a single seed.
    """
    values = [curve[max(curve)] if objective == "final" else fmean(curve.values()) for curve in curves]
    by_seed = [fmean(values[start : start + num_tasks]) for start in range(0, len(values), num_tasks)]
    return fmean(by_seed), stdev(by_seed) if len(by_seed) > 1 else None


def is_value(value: float | None) -> bool:
    """Whether a number of a manifest can be a trial's value."""
    return value is None or abs(value) <= LARGEST
