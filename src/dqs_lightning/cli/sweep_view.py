"""The table that a sweep shows while it runs."""

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
COLOURS = {"running": "cyan", "failed": "red", "stopped": "yellow", "pending": "dim", "done": "green"}
"""By state, in the order of the rows: running first, where a table longer than the terminal is not cut."""


class View:
    """The sweep as one table on a terminal; elsewhere a line when a run's state changes."""

    def __init__(self, runs: list[Run], manifest: Manifest) -> None:
        self.runs, self.manifest = runs, manifest
        self.console = Console()
        self._since: dict[str, float] = {}
        self._said = {run.name: manifest.records[run.name].state for run in runs}

    def cells(self, run: Run) -> tuple[str, str, str, str, str]:
        """State, frames, return, wall time and note of a run."""
        record = self.manifest.records[run.name]
        frames, score, total = _progress(run.folder) if record.start else ("-", "-", "-")
        wall = record.wall_s
        if record.state == "running":
            wall += time.monotonic() - self._since.setdefault(run.name, time.monotonic())
        else:
            self._since.pop(run.name, None)
        minutes, seconds = divmod(int(wall), 60)
        return record.state, f"{frames}/{total}", score, f"{minutes}:{seconds:02d}", printable(record.note)

    def table(self) -> Table:
        """One row a run."""
        table = Table("run", "state", "frames", "return", "wall", "", box=None)
        for run in sorted(self.runs, key=lambda run: list(COLOURS).index(self.manifest.records[run.name].state)):
            state, *others, note = self.cells(run)
            table.add_row(run.name, f"[{COLOURS[state]}]{state}[/]", *others, escape(note))
        return table

    def say(self) -> None:
        """Print a line for each run whose state has changed since the last call."""
        for run in self.runs:
            state = self.manifest.records[run.name].state
            if state != self._said[run.name]:
                self._said[run.name] = state
                line = "  ".join(cell for cell in (run.name, *self.cells(run)) if cell not in ("", "-/-", "-"))
                self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def shown(self) -> Iterator[Callable[[], None]]:
        """Give the function that is called now and then."""
        if not self.console.is_terminal:
            yield self.say
            return
        with Live(self.table(), console=self.console, auto_refresh=False) as live:
            yield lambda: live.update(self.table(), refresh=True)


def _progress(folder: Path) -> tuple[str, str, str]:
    """Frames and return of the last evaluation, and frames of the whole run."""
    frames = score = total = "-"
    with contextlib.suppress(InputError, TypeError, ValueError):
        total = f"{read_run(folder)['total_frames']:,}"
    with contextlib.suppress(InputError, IndexError, ValueError, KeyError, TypeError, RecursionError):  # half a line
        row = json.loads(read_text(folder / "scores.jsonl").splitlines()[-1])
        shown = f"{row['env_frames']:,}", f"{row['return_mean']:.2f}"
        frames, score = (printable(text, WIDTH) for text in shown)
    return frames, score, total
