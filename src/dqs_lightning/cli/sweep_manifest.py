"""The state of a sweep's runs: kept in `manifest.json`, with their commands, and shown while the sweep runs."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from dqs_lightning.checkpoint.atomic import atomic_write
from dqs_lightning.checkpoint.restore import fits
from dqs_lightning.cli.errors import DONE, STOPPED, InputError
from dqs_lightning.cli.files import read_json, read_text
from dqs_lightning.cli.provenance import read_run
from dqs_lightning.cli.sweep_plan import Run
from dqs_lightning.cli.sweep_process import MANIFEST, last_words
from dqs_lightning.sharing.text import printable

State = Literal["pending", "running", "done", "failed", "stopped", "pruned"]
T = TypeVar("T")
LONGEST_S = 1e12
LOSSES = 3
"""Times that a run whose machine is lost is started again."""
WIDTH = 20
"""Largest number of characters of a number."""
COLOURS = {
    "running": "cyan", "failed": "red", "stopped": "yellow", "pending": "dim", "pruned": "magenta", "done": "green",
}  # fmt: skip
"""By state, in the order of the rows; a table longer than the terminal is cut at its end."""


@dataclass
class Record:
    """The manifest's record of a run."""

    command: list[str]
    settings: list[str]  # with digest, see `Run`, what makes it the same run
    digest: str
    state: State = "pending"  # stopped: by a signal, to be continued; pruned: not to be; failed: any other exit but 0
    start: str | None = None  # of the first process, ISO 8601, UTC
    wall_s: float = 0.0  # of all its processes together
    exit_code: int | None = None  # of the last process, negative for a signal; None: there is none, or it was lost
    note: str = ""  # the last message of a failed run; what became of one whose machine was lost


@dataclass
class Trial:
    """The manifest's record of a trial of a search: the runs with the same parameters, of all tasks and seeds."""

    parameters: dict[str, Any]
    state: Literal["running", "done", "pruned", "failed"] = "running"  # running: or not started yet
    value: float | None = None  # its objective; of a pruned trial, the mean return at `frames`
    deviation: float | None = None  # standard deviation of the value over seeds
    frames: int | None = None  # of the evaluation after which it was pruned


class Manifest:
    """The records of a sweep, written to disk after every change.

    A run that the file on disk calls done stays done where its exit code was 0 and its checkpoint is there; one that
    was running when the sweep was killed counts as stopped. Runs that are no longer in the sweep file are kept.

    Refuses a damaged file, and a run of the same name with other settings or another configuration.
    """

    def __init__(self, out: Path, runs: Iterable[Run] = ()) -> None:
        self.file = out / MANIFEST
        self.about: dict[str, Any] = {}
        self.records: dict[str, Record] = {}
        self.trials: list[Trial] = []
        self.losses: dict[str, int] = {}
        """Processes of each run that this sweep has lost with their machines."""
        self.written: dict[str, Any] = {}
        """The sweep file's content when the manifest was last written."""
        self._read()
        for run in runs:
            self.add(run)

    def add(self, run: Run) -> None:
        """Adds a run, or checks the record that it has."""
        old = self.records.get(run.name)
        if old is None or not run.checkpoint.is_file():
            self.records[run.name] = Record(run.command, list(run.settings), run.digest)
            return
        if (old.settings, old.digest) != (list(run.settings), run.digest):
            differ = f"{run.config}, or a file that it extends, has changed"
            if old.settings != list(run.settings):
                was, now = (printable(" ".join(words)) for words in (old.settings, run.settings))
                differ = f"was {was}\nis {now}"
            raise InputError(f"{run.folder}: holds a run of another sweep\n{differ}\nGive another name or --out")
        old.command = run.command
        if old.state == "running" or (old.state == "done" and old.exit_code != DONE):
            old.state = "stopped"

    def _read(self) -> None:
        if not os.path.lexists(self.file):
            return
        try:
            content = read_json(self.file)
            self.records = {name: _record(Record, row) for name, row in content["runs"].items()}
            self.trials = [_record(Trial, row) for row in content.get("trials", [])]
            self.written = dict(content.get("sweep", {}))
        except (InputError, ValueError, KeyError, TypeError, AttributeError) as error:
            said = "not a manifest of dqs-sweep; move it away, or give another --out"
            raise InputError(f"{self.file}: {said}") from error

    def describe(self, sweep: dict[str, Any], environment: dict[str, Any]) -> None:
        """Writes the content of the sweep file and the environment of this process beside the runs."""
        self.about = {"sweep": sweep, "environment": environment}
        self.write()

    def state(self, run: Run) -> State:
        return self.records[run.name].state

    def started(self, run: Run) -> None:
        """Records that a run's process starts."""
        record = self.records[run.name]
        record.state, record.exit_code, record.note = "running", None, ""
        record.start = record.start or datetime.now(UTC).isoformat(timespec="seconds")
        self.write()

    def lost(self, run: Run, wall_s: float, reason: str) -> bool:
        """Records that a run's process was lost with its machine; returns whether it is to be started again."""
        record = self.records[run.name]
        losses = self.losses[run.name] = self.losses.get(run.name, 0) + 1
        if losses > LOSSES:
            return False
        record.wall_s = round(record.wall_s + wall_s, 1)
        record.note = f"its machine was lost ({reason}); started on another"
        self.write()
        return True

    def ended(
        self,
        run: Run,
        exit_code: int | None,
        wall_s: float,
        asked: bool,
        note: str = "",
        continued: bool = False,
    ) -> None:
        """Records how a run's process ended.

        The exit code is None when the process was lost with its worker; `note` then says why. `asked` is whether the
        sweep was stopped, so that the end by a signal is no failure; `continued`, whether the process had a checkpoint.
        """
        record = self.records[run.name]
        record.exit_code, record.wall_s = exit_code, round(record.wall_s + wall_s, 1)
        if self.losses.get(run.name) and exit_code is not None:
            record.note = f"its machine was lost; {'continued from its checkpoint' if continued else 'started anew'}"
        if exit_code == DONE and run.checkpoint.is_file():
            record.state = "done"
        elif exit_code == STOPPED or (asked and (exit_code is None or exit_code < 0)):
            record.state = "stopped"
        else:
            ended = "no checkpoint is there" if exit_code == DONE else f"exit code {exit_code}"
            record.state, record.note = "failed", note or last_words(run.folder) or ended
        self.write()

    def mark(self, run: Run, state: State, note: str = "") -> None:
        """Changes the state of a run that has no process, in memory only."""
        record = self.records[run.name]
        record.state, record.note = state, note

    def write(self) -> None:
        """Writes the file."""
        content = {**self.about, "runs": {name: asdict(row) for name, row in self.records.items()}}
        if self.trials:
            content["trials"] = [asdict(trial) for trial in self.trials]
        atomic_write(f"{json.dumps(content, indent=2)}\n".encode(), self.file)


def _record(kind: type[T], row: dict[str, Any]) -> T:
    """Returns the record in a row of the file; raises KeyError, TypeError or ValueError where it is none."""
    hints = get_type_hints(kind)
    whole = all(fits(row[name], hint) for name, hint in hints.items())
    if not whole or not 0 <= row.get("wall_s", 0) < LONGEST_S:
        raise ValueError(f"not a record: {row}")
    return kind(**{name: row[name] for name in hints})


class View:
    """Shows the sweep as one table on a terminal; elsewhere as a line when a run's state changes."""

    def __init__(self, runs: list[Run], manifest: Manifest) -> None:
        self.runs, self.manifest = runs, manifest
        self.console = Console()
        self._since: dict[str, float] = {}
        self._shown: dict[str, str] = {run.name: manifest.state(run) for run in runs}  # runs may be added later

    def cells(self, run: Run) -> tuple[str, str, str, str, str]:
        """Returns state, frames, return, wall time and note of a run."""
        record = self.manifest.records[run.name]
        frames, score, total = _progress(run.folder) if record.start else ("-", "-", "-")
        now, since = time.monotonic(), self._since.pop(run.name, None)
        if record.state == "running":
            self._since[run.name] = since or now
        minutes, seconds = divmod(int(record.wall_s + now - self._since.get(run.name, now)), 60)
        return record.state, f"{frames}/{total}", score, f"{minutes}:{seconds:02d}", printable(record.note)

    def table(self) -> Table:
        """Returns a table of one row a run."""
        table = Table("run", "state", "frames", "return", "wall", "", box=None)
        for run in sorted(self.runs, key=lambda run: list(COLOURS).index(self.manifest.state(run))):
            state, *others, note = self.cells(run)
            table.add_row(run.name, f"[{COLOURS[state]}]{state}[/]", *others, escape(note))
        return table

    def print_changes(self) -> None:
        """Prints a line for each run whose state has changed since the last call."""
        for run in self.runs:
            if (state := self.manifest.state(run)) != self._shown.get(run.name, "pending"):
                self._shown[run.name] = state
                line = "  ".join(cell for cell in (run.name, *self.cells(run)) if cell not in ("", "-/-", "-"))
                self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def shown(self) -> Iterator[Callable[[], None]]:
        """Gives the function that updates what is shown."""
        if not self.console.is_terminal:
            yield self.print_changes
            return
        with Live(self.table(), console=self.console, auto_refresh=False) as live:
            yield lambda: live.update(self.table(), refresh=True)


def _progress(folder: Path) -> tuple[str, str, str]:
    """Returns frames and return of the last evaluation, and frames of the whole run."""
    frames = score = total = "-"
    with contextlib.suppress(InputError, TypeError, ValueError):
        total = f"{read_run(folder)['total_frames']:,}"
    with contextlib.suppress(InputError, IndexError, ValueError, KeyError, TypeError, RecursionError):  # half a line
        row = json.loads(read_text(folder / "scores.jsonl").splitlines()[-1])
        frames, score = printable(f"{row['env_frames']:,}", WIDTH), printable(f"{row['return_mean']:.2f}", WIDTH)
    return frames, score, total
