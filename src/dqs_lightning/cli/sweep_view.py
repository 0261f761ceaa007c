"""What a sweep shows while it runs."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.escape import printable
from dqs_lightning.cli.provenance import read_run
from dqs_lightning.cli.reading import read_text
from dqs_lightning.cli.sweep_manifest import Manifest
from dqs_lightning.cli.sweep_plan import Run

WIDTH = 20
"""Characters of a number that are shown."""


class View:
    """The sweep as one table on a terminal; elsewhere a line when a run's state changes."""

    ORDER = ("running", "failed", "stopped", "pending", "done")
    """What is at work stands above, where a table longer than the terminal is not cut."""

    def __init__(self, runs: list[Run], manifest: Manifest) -> None:
        self.runs, self.manifest = runs, manifest
        self.console = Console()
        self._since: dict[str, float] = {}
        self._said = {run.name: manifest.records[run.name].state for run in runs}

    def cells(self, run: Run) -> tuple[str, str, str, str, str]:
        """State, frames, return, wall time and note of a run."""
        record = self.manifest.records[run.name]
        frames, score = _latest(run.folder / "scores.jsonl") if record.start else ("-", "-")
        wall = record.wall_s
        if record.state == "running":
            wall += time.monotonic() - self._since.setdefault(run.name, time.monotonic())
        else:
            self._since.pop(run.name, None)
        minutes, seconds = divmod(int(wall), 60)
        total = _total_frames(run.folder) if record.start else "-"
        return record.state, f"{frames}/{total}", score, f"{minutes}:{seconds:02d}", printable(record.note)

    def table(self) -> Table:
        """One row a run."""
        table = Table("run", "state", "frames", "return", "wall", "", box=None)
        for run in sorted(self.runs, key=lambda run: self.ORDER.index(self.manifest.records[run.name].state)):
            state, *others, note = self.cells(run)
            color = {"running": "cyan", "failed": "red", "stopped": "yellow", "done": "green"}.get(state, "dim")
            table.add_row(run.name, f"[{color}]{state}[/]", *others, escape(note))
        return table

    def say(self) -> None:
        """A line for each run whose state is another than at the last call."""
        for run in self.runs:
            state = self.manifest.records[run.name].state
            if state != self._said[run.name]:
                self._said[run.name] = state
                line = "  ".join(cell for cell in (run.name, *self.cells(run)) if cell not in ("", "-/-", "-"))
                self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def shown(self) -> Iterator[Callable[[], None]]:
        """Gives what is to be called now and then."""
        if not self.console.is_terminal:
            yield self.say
            return
        with Live(self.table(), console=self.console, auto_refresh=False) as live:
            yield lambda: live.update(self.table(), refresh=True)


def _latest(scores: Path) -> tuple[str, str]:
    """Frames and return of the last evaluation."""
    try:
        row = json.loads(read_text(scores).splitlines()[-1])
        return printable(f"{row['env_frames']:,}", WIDTH), printable(f"{row['return_mean']:.2f}", WIDTH)
    except (InputError, IndexError, ValueError, KeyError, TypeError, RecursionError):  # none yet, or half a line
        return "-", "-"


def _total_frames(folder: Path) -> str:
    """Frames of the whole run, as dqs-fit wrote them there."""
    try:
        return f"{read_run(folder)['total_frames'] or '-':,}"
    except (InputError, ValueError):
        return "-"
