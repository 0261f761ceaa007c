"""The trials of a search as tables: `best.md`, `trials.csv`, and `study.journal` for Optuna's tools."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from dqs_lightning.checkpoint.atomic import atomic_write
from dqs_lightning.cli.sweep_manifest import Trial
from dqs_lightning.cli.sweep_space import SearchSettings, overrides_of
from dqs_lightning.cli.sweep_study import journal

BEST, TRIALS, STUDY = "best.md", "trials.csv", "study.journal"
SHOWN = 10
"""Trials of the table of the best."""
_ORDER = ("done", "pruned", "running", "failed")


def ranked(trials: Sequence[Trial]) -> list[int]:
    """Returns the numbers of trials, best first: finished ones by value, pruned ones by frames and value, others."""

    def key(number: int) -> tuple[float, ...]:
        trial = trials[number]
        value = trial.value if trial.value is not None else 0.0
        return _ORDER.index(trial.state), -(trial.frames or 0), -value, number

    return sorted(range(len(trials)), key=key)


def best_of(settings: SearchSettings, trials: Sequence[Trial], folders: Sequence[Sequence[str]]) -> str:
    """Returns the best trials as a Markdown table, with the overrides of the best one.

    Args:
        settings: of the search.
        trials: by number.
        folders: the run folders of each trial, relative to the sweep's.
    """
    head = ["rank", "trial", "return", "sd over seeds", "state", *settings.space, "runs"]
    rows: list[list[str]] = []
    for number in ranked(trials)[:SHOWN]:
        trial = trials[number]
        state = f"pruned at {trial.frames:,} frames" if trial.state == "pruned" else trial.state
        values = (_short(trial.parameters[name]) for name in settings.space)
        rank = str(len(rows) + 1) if trial.state == "done" else ""
        cells = [rank, str(number), _short(trial.value), _short(trial.deviation), state, *values]
        rows.append([*cells, " ".join(_shared(folders[number]))])
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (head, *rows)]
    lines.insert(1, "|" + "---|" * len(head))
    best = next((trials[number] for number in ranked(trials) if trials[number].state == "done"), None)
    if best is not None:
        lines += ["", f"Best: `overrides: [{', '.join(overrides_of(best.parameters))}]`"]
    return "\n".join(lines) + "\n"


def write_tables(
    out: Path, settings: SearchSettings, trials: Sequence[Trial], folders: Sequence[Sequence[str]]
) -> None:
    """Writes the three files into the sweep's folder; for the arguments see `best_of`."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["trial", "state", "value", "sd", "pruned_at_frames", *settings.space, "runs"])
    for number in ranked(trials):
        trial = trials[number]
        values = [trial.parameters[name] for name in settings.space]
        runs = " ".join(folders[number])
        table.writerow([number, trial.state, trial.value, trial.deviation, trial.frames, *values, runs])
    contents = {BEST: best_of(settings, trials, folders), TRIALS: text.getvalue()}
    contents[STUDY] = journal(settings.space, trials)
    for name, content in contents.items():
        atomic_write(content.encode(), out / name)


def _short(value: float | str | None) -> str:
    """Returns a number in four significant digits; a whole number or a text as it is."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _shared(folders: Sequence[str]) -> list[str]:
    """Returns the folders above those of the seeds, in order."""
    return list(dict.fromkeys(Path(folder).parent.as_posix() for folder in folders))
