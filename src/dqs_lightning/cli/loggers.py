"""Loggers that write into the run directory."""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from dqs_lightning.checkpoint.atomic import append_lines, atomic_write

ROWS_HELD = 16
"""Rows of metrics.csv that a killed run may lose."""


class _AppendingWriter(ExperimentWriter):
    """Adds to the rows of the run that it continues, which Lightning's writer deletes.

    Rows that cannot be written, as on a full disk, are kept for the next attempt.
    """

    def _check_log_dir_exists(self) -> None:
        self.metrics_keys, _ = _read(Path(self.metrics_file_path))

    def save(self) -> None:
        file = Path(self.metrics_file_path)
        if not self.metrics:
            return
        known = list(self.metrics_keys)
        self._record_new_keys()
        try:
            if self.metrics_keys == known and file.is_file():
                append_lines(_text(known, self.metrics), file)
            else:
                _write(file, self.metrics_keys, [*_read(file)[1], *self.metrics])
        except OSError as error:
            self.metrics_keys = known
            rank_zero_warn(f"{file}: cannot be written ({error}); the rows are kept for the next attempt")
        else:
            self.metrics = []


class RunCSVLogger(CSVLogger):
    """`metrics.csv` in the run directory itself, continued when the run is."""

    @property
    def experiment(self) -> _ExperimentWriter:
        if self._experiment is None:
            os.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _AppendingWriter(log_dir=self.log_dir)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        # Lightning writes where step + 1 is a multiple of 100, and updates are logged at even steps: at the end only.
        super().log_metrics(metrics, step)
        if len(self.experiment.metrics) >= ROWS_HELD:
            self.experiment.save()


def drop_later_metrics(file: Path, updates: int) -> None:
    """Drops the rows that were written after the checkpoint from which a run continues."""
    header, rows = _read(file)
    kept = [row for row in rows if int(row["step"]) <= updates]
    if len(kept) < len(rows):
        _write(file, header, kept)


def _read(file: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Returns header and rows of a file; nothing where there is none."""
    if not file.is_file():
        return [], []
    with file.open(newline="") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
        return list(reader.fieldnames or []), rows


def _write(file: Path, header: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    atomic_write(_text(header, [dict(zip(header, header, strict=True)), *rows]).encode(), file)


def _text(header: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, header).writerows(rows)
    return text.getvalue()
