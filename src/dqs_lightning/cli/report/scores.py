"""The evaluations of a run, from its `scores.jsonl`."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dqs_lightning.cli.errors import InputError

Floats = NDArray[np.float64]

FILE = "scores.jsonl"
KEYS = ("env_frames", "updates", "wall_s", "episodes", "return_mean")


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
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            values = [float(row[key]) for key in KEYS]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}, line {number}: not a whole row with {', '.join(KEYS)}: {line[:60]!r}") from error
        for key, value in zip(KEYS, values, strict=True):
            if not math.isfinite(value):
                raise InputError(f"{file}, line {number}: {key}={value}: must be a finite number")
        if rows and (values[0] <= rows[-1][0] or values[1] < rows[-1][1] or values[2] < rows[-1][2]):
            raise InputError(f"{file}, line {number}: frames, updates or seconds go back")
        rows.append(values)
    if not rows:
        raise InputError(f"{file}: the file is empty; the run has not been evaluated yet")
    frames, updates, wall_s, episodes, returns = np.array(rows).T
    return Scores(frames, updates, wall_s, returns, episodes)
