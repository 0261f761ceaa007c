"""Reads what a run directory contains about its policy: the last evaluation, settings, command, and video."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dqs_lightning.checkpoint.bounded import check_bounded
from dqs_lightning.sharing.text import without_place

SCORES, RUN, VIDEOS = "scores.jsonl", "run.json", "videos"
TRAINED_WITH = (
    "commit", "python", "dqs-lightning", "torch", "lightning", "torchrl", "dm_control", "mujoco", "gymnasium", "numpy",
)  # fmt: skip
"""Entries of a start that are versions."""
MAX_BYTES = 64 * 2**20
"""Largest size of a file."""


@dataclass(frozen=True)
class Score:
    """One evaluation: the mean return of so many episodes after so many frames, and its 95 % interval."""

    env_frames: int
    mean: float
    low: float
    high: float
    episodes: int


@dataclass(frozen=True)
class RunRecord:
    """What is known of a run; all of it may be missing.

    Attributes:
        score: the last evaluation up to the frames of the checkpoint.
        method: name of the method.
        seed: of the run.
        command: the command line that started it, without the folders of its machine.
        settings: of `model`, `data` and `evaluate`, with absolute paths shortened likewise.
        versions: of the packages that it was trained with.
        video: the newest one.
    """

    score: Score | None = None
    method: str | None = None
    seed: int | None = None
    command: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    video: Path | None = None


def folder_of(checkpoint: Path) -> Path | None:
    """Returns the run directory of a checkpoint; None where it is in no folder `checkpoints` of one."""
    return checkpoint.absolute().parent.parent if checkpoint.absolute().parent.name == "checkpoints" else None


def read(folder: Path | None, env_frames: int | None) -> RunRecord:
    """Reads a run directory.

    Args:
        folder: the directory; None: nothing is known.
        env_frames: of the checkpoint; later evaluations are of other policies. None: the last one.

    Raises:
        ValueError: for a file that is not what `dqs-fit` writes; one line that names it.
    """
    if folder is None:
        return RunRecord()
    score = last_score(folder / SCORES, env_frames)
    films = sorted((folder / VIDEOS).glob("*.mp4"), key=lambda file: file.stat().st_mtime)
    video = films[-1] if films else None
    file = folder / RUN
    if not file.is_file():
        return RunRecord(score, video=video)
    try:
        facts = json.loads(_text(file))
        check_bounded(facts)
        last = {key: value for start in facts["starts"] for key, value in start.items()}
        versions = {key: str(last[key]) for key in TRAINED_WITH if last.get(key)}
        command = without_place(facts["starts"][0]["command"])
        settings = dict(_shortened(facts["settings"]))
        return RunRecord(score, str(facts["method"]), int(facts["seed"]), command, settings, versions, video)
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: not what dqs-fit writes ({type(error).__name__})") from error


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shortened(item) for item in value]
    return without_place([value]) if isinstance(value, str) and value.startswith("/") else value


def last_score(file: Path, env_frames: int | None) -> Score | None:
    """Returns the last row of a `scores.jsonl` at or below a number of frames; None where there is none."""
    if not file.is_file():
        return None
    found = None
    for number, line in enumerate(_text(file).splitlines(), 1):
        try:
            row = json.loads(line)
            low, high = row.get("return_ci95", (math.nan, math.nan))
            mean, low, high = (float(value) for value in (row["return_mean"], low, high))
            score = Score(int(row["env_frames"]), mean, low, high, int(row["episodes"]))
        except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{file}, line {number}: not what Evaluate writes ({type(error).__name__})") from error
        if env_frames is None or score.env_frames <= env_frames:
            found = score
    return found


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"{file}: must have at most {MAX_BYTES:,} bytes")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read ({error})") from error
