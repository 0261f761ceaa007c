"""Files of measurements in the run directory: one JSON object a line."""

import json
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from dqs_lightning.checkpoint.atomic import append_lines, atomic_write


class Rows:
    """Appends rows to a file. A row that cannot be written, as on a full disk, is kept for the next attempt."""

    def __init__(self) -> None:
        self._waiting: list[str] = []

    def append(self, file: Path, row: dict[str, Any]) -> None:
        """Add a row, which must have the keys `updates` and `env_frames`."""
        self._waiting.append(json.dumps(row) + "\n")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            append_lines("".join(self._waiting), file)
        except OSError as error:
            rank_zero_warn(f"{file}: cannot be written ({error}); the rows are kept for the next attempt")
            return
        self._waiting.clear()


def updates_kept(trainer: L.Trainer) -> int:
    """Updates up to which rows are kept at the start of training: those of the checkpoint; -1 for a new run."""
    return -1 if trainer.ckpt_path is None else trainer.global_step


def drop_later_rows(file: Path, updates: int, interrupted_at: int | None = None) -> None:
    """Drop the rows that were written after the checkpoint from which a run continues.

    Args:
        file: one JSON object a line; may be missing.
        updates: gradient updates of the checkpoint.
        interrupted_at: frames of a measurement that is made again; its row is dropped as well.
    """
    if not file.exists():
        return
    lines = file.read_text().splitlines()
    rows = [(line, json.loads(line)) for line in lines]
    kept = [line for line, row in rows if row["updates"] <= updates and row["env_frames"] != interrupted_at]
    if kept != lines:
        atomic_write("".join(f"{line}\n" for line in kept).encode(), file)
