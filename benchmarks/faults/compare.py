"""Finds differences between two runs that should be equal: checkpoint, rank files, scores and metrics."""

import csv
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dqs_lightning.checkpoint.archive import CheckpointError, safe_load

TIMES = re.compile(r"(^|[./])(wall_s|time/\S*|started|rank_digests\S*)$")
"""Entries that contain times, or that link the files of one save."""


def differences(one: Any, other: Any, path: str = "", ignore: re.Pattern[str] = TIMES) -> Iterator[str]:
    """Yields the paths of entries at which two nested values differ; tensors must be bitwise equal."""
    if ignore.search(path):
        return
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            name = f"{path}.{key}" if path else str(key)
            if key in one and key in other:
                yield from differences(one[key], other[key], name, ignore)
            elif not ignore.search(name):
                yield f"{name} (in one alone)"
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            yield f"{path} (lengths {len(one)} and {len(other)})"
        for index, pair in enumerate(zip(one, other, strict=False)):
            yield from differences(*pair, f"{path}.{index}", ignore)
    elif not _equal(one, other):
        yield path


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.shape == other.shape and one.dtype == other.dtype
        return same and bool(
            torch.equal(one.nan_to_num(), other.nan_to_num()) and torch.equal(one.isnan(), other.isnan())
        )
    if type(one) is float and type(other) is float and math.isnan(one):
        return math.isnan(other)
    return type(one) is type(other) and bool(one == other)


def rank_files(run: Path) -> dict[int, Path]:
    """Returns the rank files that belong to `last.ckpt`, by rank."""
    last = safe_load(run / "checkpoints" / "last.ckpt")
    found = (run / "checkpoints").glob(f"step={last['global_step']}-frames={last['env_frames']}-rank=*.pt")
    return {int(path.stem.rpartition("=")[2]): path for path in sorted(found)}


def saved(run: Path) -> Any:
    """Loads the whole checkpoint of a run, by name: `shared`, `rank 0`, `rank 1`."""
    shared = safe_load(run / "checkpoints" / "last.ckpt")
    return {"shared": shared, **{f"rank {rank}": safe_load(path) for rank, path in rank_files(run).items()}}


def rows(file: Path) -> Any:
    """Reads the rows of scores.jsonl or metrics.csv, without empty columns and times."""
    if file.suffix == ".jsonl":
        found = [json.loads(line) for line in file.read_text().splitlines()]
    else:
        with file.open(newline="") as lines:
            found = list(csv.DictReader(lines))
    return [{key: row[key] for key in row if row[key] != "" and not TIMES.search(key)} for row in found]


def unequal(one: Path, other: Path) -> list[str]:
    """Returns the first few differences of each part of two run directories; empty if they are equal."""
    found = []
    parts = {"checkpoint": saved, "scores.jsonl": rows, "metrics.csv": rows}
    for name, read in parts.items():
        try:
            pair = [read(run if read is saved else run / name) for run in (one, other)]
        except (CheckpointError, OSError) as error:
            found.append(f"{name}: {error}")
            continue
        paths = list(differences(*pair))
        found += [f"{name}: {path}" for path in paths[:4]] + (
            [f"{name}: {len(paths)} in all"] if len(paths) > 4 else []
        )
    return found
