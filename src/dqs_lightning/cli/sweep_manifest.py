"""Keeps a sweep's `manifest.json`: each run's command and state, the sweep file, and the environment."""

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_type_hints

from dqs_lightning.checkpoint.atomic import atomic_write
from dqs_lightning.checkpoint.restore import fits
from dqs_lightning.cli.errors import DONE, STOPPED, InputError, printable
from dqs_lightning.cli.files import read_json
from dqs_lightning.cli.sweep_plan import Run
from dqs_lightning.cli.sweep_process import last_words

State = Literal["pending", "running", "done", "failed", "stopped"]
NAME = "manifest.json"
LONGEST_S = 1e12


@dataclass
class Record:
    """The manifest's record of a run."""

    command: list[str]
    settings: list[str]  # with digest, see `Run`, what makes it the same run
    digest: str
    state: State = "pending"  # stopped: by a signal, to be continued; failed: any other exit but 0
    start: str | None = None  # of the first process, ISO 8601, UTC
    wall_s: float = 0.0  # of all its processes together
    exit_code: int | None = None  # of the last process, negative for a signal; None: there is none, or it was lost
    note: str = ""  # the last message of a failed run


class Manifest:
    """The records of a sweep, written to disk after every change.

    A run that the file on disk calls done stays done where its exit code was 0 and its checkpoint is there; one that
    was running when the sweep was killed counts as stopped. Runs that are no longer in the sweep file are kept.

    Refuses a damaged file, and a run of the same name with other settings or another configuration.
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
            if (old.settings, old.digest) != (list(run.settings), run.digest):
                differ = f"{run.config}, or a file that it extends, has changed"
                if old.settings != list(run.settings):
                    was, now = (printable(" ".join(words)) for words in (old.settings, run.settings))
                    differ = f"was {was}\nis {now}"
                raise InputError(f"{run.folder}: holds a run of another sweep\n{differ}\nGive another name or --out")
            old.command = run.command
            if old.state == "running" or (old.state == "done" and old.exit_code != DONE):
                old.state = "stopped"

    def _read(self) -> dict[str, Record]:
        if not os.path.lexists(self.file):
            return {}
        try:
            return {name: _record(row) for name, row in read_json(self.file)["runs"].items()}
        except (InputError, ValueError, KeyError, TypeError, AttributeError) as error:
            said = "not a manifest of dqs-sweep; move it away, or give another --out"
            raise InputError(f"{self.file}: {said}") from error

    def describe(self, sweep: dict[str, Any], environment: dict[str, Any]) -> None:
        """Writes the content of the sweep file and the environment of this process beside the runs."""
        self.about = {"sweep": sweep, "environment": environment}
        self._write()

    def state(self, run: Run) -> State:
        return self.records[run.name].state

    def started(self, run: Run) -> None:
        """Records that a run's process starts."""
        record = self.records[run.name]
        record.state, record.exit_code, record.note = "running", None, ""
        record.start = record.start or datetime.now(UTC).isoformat(timespec="seconds")
        self._write()

    def ended(self, run: Run, exit_code: int | None, wall_s: float, asked: bool, note: str = "") -> None:
        """Records how a run's process ended.

        The exit code is None when the process was lost with its worker; `note` then says why. `asked` is whether the
        sweep was stopped, so that the end by a signal is no failure.
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


def _record(row: dict[str, Any]) -> Record:
    """Returns the record in a row of the file; raises KeyError, TypeError or ValueError where it is none."""
    hints = get_type_hints(Record)
    if not all(fits(row[name], hint) for name, hint in hints.items()) or not 0 <= row["wall_s"] < LONGEST_S:
        raise ValueError(f"not a record: {row}")
    return Record(**{name: row[name] for name in hints})
