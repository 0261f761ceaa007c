"""The sweep's `manifest.json`: what each run is, its state, and what it was made with."""

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_type_hints

from dqs_lightning.checkpoint.atomic import atomic_write
from dqs_lightning.checkpoint.restore import fits
from dqs_lightning.cli.errors import DONE, STOPPED, InputError
from dqs_lightning.cli.escape import printable
from dqs_lightning.cli.reading import read_json
from dqs_lightning.cli.sweep_plan import Run
from dqs_lightning.cli.sweep_process import last_words

State = Literal["pending", "running", "done", "failed", "stopped"]
NAME = "manifest.json"
LONGEST_S = 1e12


@dataclass
class Record:
    """The manifest's record of a run.

    Attributes:
        command: the dqs-fit command line, as words.
        settings: its overrides and seed; with `digest`, see `Run`, they show whether it is the same run.
        state: stopped: by a signal, to be continued; failed: any exit but 0 that the sweep did not cause.
        start: of the first process, ISO 8601, UTC.
        wall_s: seconds of all its processes together.
        exit_code: of the last process, negative for a signal; None while there is none, or it was lost.
        note: the last message of a failed run.
    """

    command: list[str]
    settings: list[str]
    digest: str
    state: State = "pending"
    start: str | None = None
    wall_s: float = 0.0
    exit_code: int | None = None
    note: str = ""


class Manifest:
    """The records of a sweep, on disk after every change.

    A run that the file on disk calls done stays done where its exit code was 0 and its checkpoint is there; one that
    was running when the sweep was killed counts as stopped. Runs that are no longer in the sweep file are kept.

    Args:
        out: the sweep's folder.
        runs: all of the sweep.

    Raises:
        InputError: when the file on disk is damaged, or a run of the same name was trained with other settings or
            another configuration, which a run that continues it would mix up.
    """

    def __init__(self, out: Path, runs: list[Run]) -> None:
        self.file = out / NAME
        self.about: dict[str, Any] = {}
        self.records = self._read()
        for run in runs:
            old = self.records.get(run.name)
            if old is None or not run.checkpoint.is_file():
                self.records[run.name] = Record(run.command, list(run.settings), run.digest)
                continue
            if differ := _differences(run, old):
                words = [f"{run.folder}: holds a run of another sweep", *differ, "Give another name or --out"]
                raise InputError("\n".join(words))
            old.command = run.command
            if old.state == "running" or (old.state == "done" and old.exit_code != DONE):
                old.state = "stopped"

    def _read(self) -> dict[str, Record]:
        if not os.path.lexists(self.file):
            return {}
        try:
            return {name: _record(row) for name, row in read_json(self.file)["runs"].items()}
        except (InputError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = "not a manifest of dqs-sweep; move it away, or give another --out"
            raise InputError(f"{self.file}: {reason}") from error

    def describe(self, sweep: dict[str, Any], environment: dict[str, Any]) -> None:
        """Write what the sweep file says, and with what the sweep was started, beside the runs."""
        self.about = {"sweep": sweep, "environment": environment}
        self._write()

    def started(self, run: Run) -> None:
        record = self.records[run.name]
        record.state, record.exit_code, record.note = "running", None, ""
        record.start = record.start or datetime.now(UTC).isoformat(timespec="seconds")
        self._write()

    def ended(self, run: Run, exit_code: int | None, wall_s: float, asked: bool, note: str = "") -> None:
        """Record how a run's process ended.

        Args:
            run: whose.
            exit_code: None when it was lost with its worker.
            wall_s: seconds that it took.
            asked: whether the sweep was stopped: then a death by that signal is no failure.
            note: why it was lost.
        """
        record = self.records[run.name]
        record.exit_code, record.wall_s = exit_code, round(record.wall_s + wall_s, 1)
        if exit_code == DONE and run.checkpoint.is_file():
            record.state = "done"
        elif exit_code == STOPPED or (asked and (exit_code is None or exit_code < 0)):
            record.state = "stopped"
        else:
            ended = "no checkpoint is there" if exit_code == DONE else f"exit code {exit_code}"
            record.state, record.note = "failed", note or last_words(run.folder) or ended
        self._write()

    def _write(self) -> None:
        content = {**self.about, "runs": {name: asdict(row) for name, row in self.records.items()}}
        atomic_write(f"{json.dumps(content, indent=2)}\n".encode(), self.file)


def _differences(run: Run, old: Record) -> list[str]:
    if old.settings != list(run.settings):
        settings = {"was": old.settings, "is": run.settings}
        return [f"{verb} {printable(' '.join(words))}" for verb, words in settings.items()]
    changed = f"{run.config}, or a file that it extends, says other things than it did"
    return [] if old.digest == run.digest else [changed]


def _record(row: dict[str, Any]) -> Record:
    """Return the record that a row of the file holds; KeyError, TypeError or ValueError where it is none."""
    hints = get_type_hints(Record)
    for name, hint in hints.items():
        if not fits(row[name], hint):
            raise TypeError(f"{name}={row[name]}")
    if not 0 <= row["wall_s"] < LONGEST_S:
        raise ValueError(f"wall_s={row['wall_s']}")
    return Record(**{name: row[name] for name in hints})
