"""Shows the runs of a sweep while it runs."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from dqs_lightning.cli.errors import InputError, printable
from dqs_lightning.cli.files import read_text
from dqs_lightning.cli.provenance import read_run
from dqs_lightning.cli.sweep_manifest import Manifest
from dqs_lightning.cli.sweep_plan import Run

WIDTH = 20
"""Largest number of characters of a number."""
COLOURS = {"running": "cyan", "failed": "red", "stopped": "yellow", "pending": "dim", "done": "green"}
"""By state, in the order of the rows; a table longer than the terminal is cut at its end."""


class View:
    """Shows the sweep as one table on a terminal; elsewhere as a line when a run's state changes."""

    def __init__(self, runs: list[Run], manifest: Manifest) -> None:
        self.runs, self.manifest = runs, manifest
        self.console = Console()
        self._since: dict[str, float] = {}
        self._shown: dict[str, str] = {run.name: manifest.state(run) for run in runs}

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
            if (state := self.manifest.state(run)) != self._shown[run.name]:
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
