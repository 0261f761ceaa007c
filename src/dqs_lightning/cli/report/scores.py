"""The evaluations of a run, from its `scores.jsonl`."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.escape import printable
from dqs_lightning.cli.reading import read_text

Floats = NDArray[np.float64]

FILE = "scores.jsonl"
RANGES = {
    "env_frames": (0, 1e15),
    "updates": (0, 1e15),
    "wall_s": (0, 1e12),
    "episodes": (1, 1e9),
    "return_mean": (-1e100, 1e100),
}
"""Least and largest value of each number of a row: their squares and sums are finite."""
KEYS = tuple(RANGES)


@dataclass(frozen=True)
class Scores:
    """A run's evaluations, in order; all arrays are [evaluations].

    Attributes:
        frames: environment frames, rising.
        updates: gradient steps by then.
        wall_s: seconds by then, evaluations included.
        returns: mean over the episodes of each.
        episodes: of each evaluation.
    """

    frames: Floats
    updates: Floats
    wall_s: Floats
    returns: Floats
    episodes: Floats


def read_scores(file: Path) -> Scores:
    """A run's evaluations.

    Raises:
        InputError: when there is none, or a line is not a whole row that follows the one before; it names the line.
    """
    rows: list[list[float]] = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
            values = [row[key] for key in KEYS]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{where}: not a whole row with {', '.join(KEYS)}: {line[:60]!r}") from error
        for key, value in zip(KEYS, values, strict=True):
            _check_number(value, key, where)
        if rows and (values[0] <= rows[-1][0] or values[1] < rows[-1][1] or values[2] < rows[-1][2]):
            raise InputError(f"{where}: frames, updates or seconds go back")
        rows.append([float(value) for value in values])
    if not rows:
        raise InputError(f"{file}: the file is empty; the run has not been evaluated yet")
    frames, updates, wall_s, episodes, returns = np.array(rows).T
    return Scores(frames, updates, wall_s, returns, episodes)


def _check_number(value: Any, key: str, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where}: {key}={printable(value, 60)}: must be a number")
    if not math.isfinite(value if isinstance(value, float) else 0):
        raise InputError(f"{where}: {key}={value}: must be a finite number")
    least, largest = RANGES[key]
    if not least <= value <= largest:
        raise InputError(f"{where}: {key}={printable(value, 60)}: must be {least:g} to {largest:g}")
