"""Files of measurements in the run directory: one JSON object a line."""

import json
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from dqs_callbacks.periodic import Periodic
from dqs_lightning.checkpoint.atomic import append_lines, atomic_write
from dqs_lightning.collection.data import OnlineData


def drop_later_rows(file: Path, updates: int, interrupted_at: int | None = None) -> None:
    """Drops the rows after this number of updates, that of the checkpoint from which a run continues.

    The row at `interrupted_at` frames, of a measurement that is made again, is dropped as well.
    """
    if not file.exists():
        return
    lines = file.read_text().splitlines()
    rows = [(line, json.loads(line)) for line in lines]
    kept = [line for line, row in rows if row["updates"] <= updates and row["env_frames"] != interrupted_at]
    if kept != lines:
        atomic_write("".join(f"{line}\n" for line in kept).encode(), file)


class PeriodicRows(Periodic):
    """A `Periodic` that adds a row to a file at each call. Rows after the checkpoint of a continued run are dropped.

    A row that cannot be written, as on a full disk, is kept for the next attempt.
    """

    file: ClassVar[str]
    """Name in the run directory."""
    path: str | None = None
    """Where the file is; None: in the run directory."""

    def __init__(self, every_frames: int) -> None:
        super().__init__(every_frames)
        self._waiting: list[str] = []

    def _file(self, trainer: L.Trainer) -> Path:
        return Path(self.path) if self.path else Path(trainer.default_root_dir) / self.file

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            updates = -1 if trainer.ckpt_path is None else trainer.global_step  # a new run keeps no rows
            drop_later_rows(self._file(trainer), updates, self.interrupted_at)
        super().on_train_start(trainer, pl_module)

    def add(self, trainer: L.Trainer, row: dict[str, Any]) -> dict[str, Any]:
        """Writes a row, with the frames and updates so far in front; returns the whole row."""
        file = self._file(trainer)
        row = {"env_frames": OnlineData.of(trainer).env_frames, "updates": trainer.global_step, **row}
        self._waiting.append(json.dumps(row) + "\n")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            append_lines("".join(self._waiting), file)
        except OSError as error:
            rank_zero_warn(f"{file}: cannot be written ({error}); the rows are kept for the next attempt")
        else:
            self._waiting.clear()
        return row
