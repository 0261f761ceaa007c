"""Reads and checks the files of a run and of a study, without pandas.

A study is a folder with `scores.csv`, which has a row for each evaluation of its runs.
"""

import csv
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from dqs_lightning.cli.errors import InputError, refusing
from dqs_lightning.cli.files import read_json, read_text
from dqs_lightning.cli.provenance import merged, read_run
from dqs_lightning.sharing.text import printable, without_place

SCORES, STUDY, MANIFEST, METRICS = "scores.jsonl", "scores.csv", "manifest.json", "metrics.csv"
VERSIONS = ("python", "torch", "lightning", "torchrl", "dm_control", "mujoco", "stable-baselines3", "machine", "cpus")
RANGES = {
    "env_frames": (0, 1e15),
    "updates": (0, 1e15),
    "wall_s": (0, 1e12),
    "episodes": (1, 1e9),
    "return_mean": (-1e100, 1e100),
}
"""Least and largest value of each number of an evaluation: their squares and sums are finite."""
ROW = ("frames", "updates", "wall_s", "episodes", "return")
"""Columns of the same numbers."""
KEYS = ("task", "method", "seed")
TEXTS = ("run", "action_repeat", "state", "updates_per_s", "commit", "versions", "command")
"""Further columns of a study: attributes of `Run`, the same in all rows of a run."""


@dataclass(frozen=True)
class Run:
    """One training that has been evaluated; runs of one task and method differ in their seed only."""

    run: str  # its folder, as it may be printed
    task: str
    method: str
    seed: int
    rows: list[list[float]] = field(repr=False)  # its evaluations in order, with columns ROW
    action_repeat: str = ""
    state: str = ""  # in the manifest of a sweep; empty for other runs
    updates_per_s: float | None = None  # median of the logged rates
    commit: str = "-"  # of each process that worked on the run, where they differ
    versions: str = "-"  # of the last process, with its machine
    command: str = "-"  # of the last process
    folder: Path | None = None  # resolved; None for a run of a study
    settings: dict[str, Any] = field(default_factory=dict, repr=False)  # of model, data and evaluation, by dotted key
    named: bool = False  # whether --name gave the method


def read_scores(file: Path) -> list[list[float]]:
    """Reads the evaluations of a run; refuses a file without any, and a line that does not follow the one before."""
    rows: list[list[float]] = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
            values = [row[key] for key in RANGES]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{where}: not a whole row with {', '.join(RANGES)}: {line[:60]!r}") from error
        rows.append(_checked(values, rows, where))
    if not rows:
        raise InputError(f"{file}: the file is empty; the run has not been evaluated yet")
    return rows


def _checked(values: Sequence[Any], rows: Sequence[Sequence[float]], where: str) -> list[float]:
    """Returns the numbers of an evaluation; refuses a number out of range, and a row that goes back."""
    for value, (key, (least, largest)) in zip(values, RANGES.items(), strict=True):
        shown = f"{where}: {key}={printable(value, 60)}"
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:  # NaN
            raise InputError(f"{shown}: must be a number")
        if not least <= value <= largest:
            raise InputError(f"{shown}: must be {least:g} to {largest:g}")
    if rows and (values[0] <= rows[-1][0] or values[1] < rows[-1][1] or values[2] < rows[-1][2]):
        raise InputError(f"{where}: frames, updates or seconds go back")
    return [float(value) for value in values]


def run_of(folder: Path, shown: str) -> Run:
    """Reads a run directory, which is resolved; `shown` is its name in the report."""
    facts, rows = read_run(folder), read_scores(folder / SCORES)
    last = merged(facts["starts"])
    commits = dict.fromkeys(printable(start["commit"] or "-") for start in facts["starts"] if "commit" in start)
    words = last["command"] if isinstance(last.get("command"), list) else []
    return Run(
        run=shown,
        task=printable(facts["task"]),
        method=printable(facts["method"]),
        seed=facts["seed"],
        rows=rows,
        action_repeat=str(facts["action_repeat"] or ""),
        state=states(Path(*folder.parts[:-3]) / MANIFEST).get("/".join(folder.parts[-3:]), ""),
        updates_per_s=_updates_per_s(folder / METRICS),
        commit=", ".join(re.sub(r"^([0-9a-f]{12})[0-9a-f]{28}", r"\1", commit) for commit in commits) or "-",
        versions=", ".join(f"{name} {printable(last[name], 40)}" for name in VERSIONS if last.get(name)) or "-",
        command=without_place([printable(word, longest=2000) for word in words]) or "-",
        folder=folder,
        settings=_flat(facts["settings"]),
    )


def states(manifest: Path) -> dict[str, str]:
    """Returns the state of each run of a sweep, by name; nothing where the file is none of dqs-sweep's."""
    try:
        return {name: printable(record["state"], 40) for name, record in read_json(manifest)["runs"].items()}
    except (InputError, KeyError, TypeError, AttributeError):
        return {}


def _updates_per_s(metrics: Path) -> float | None:
    """Returns the median of the logged rate; rows of other metrics and a row that is being written have none."""
    rows = _csv_rows(metrics, ()) if os.path.lexists(metrics) else []
    rates = [rate for row, _ in rows if (rate := _number(row.get("time/updates_per_s") or "")) is not None]
    return median(rates) if rates else None


def runs_of(folder: Path) -> dict[Path, Run]:
    """Reads the runs of a study that `benchmarks/keep.py` wrote, each with the path by which `--name` finds it."""
    runs: dict[tuple[str, ...], Run] = {}
    for row, where in _csv_rows(folder / STUDY, (*KEYS, *ROW, *TEXTS)):
        key = row["task"], row["method"], row["seed"]
        if key not in runs:
            if not re.fullmatch(r"[0-9]{1,15}", row["seed"]):
                raise InputError(f"{where}: seed={printable(row['seed'], 60)}: must be a whole number")
            texts: dict[str, Any] = {name: printable(row[name], longest=4000) for name in (*KEYS, *TEXTS)}
            rate = _number(row["updates_per_s"])
            runs[key] = Run(**{**texts, "seed": int(row["seed"]), "updates_per_s": rate, "rows": []})
        values = [row[name] if (number := _number(row[name])) is None else number for name in ROW]
        runs[key].rows.append(_checked(values, runs[key].rows, where))
    if not runs:
        raise InputError(f"{folder / STUDY}: has no row")
    return {folder / run.task / run.method / f"seed={run.seed}": run for run in runs.values()}


def _csv_rows(file: Path, columns: Sequence[str]) -> list[tuple[dict[str, str], str]]:
    """Reads the rows of a CSV file that has such columns, and where each is."""
    reader = csv.DictReader(read_text(file).splitlines(), restval="")
    with refusing(f"{file}: not valid CSV: ", csv.Error):
        rows = [(row, f"{file}, row {number}") for number, row in enumerate(reader, 1)]
    if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
        raise InputError(f"{file}: has no column {', '.join(missing)}")
    return rows


def _number(text: str) -> float | None:
    """Returns the number of a text; None where it is none, is not finite or is too large."""
    try:
        return number if abs(number := float(text)) <= RANGES["return_mean"][1] else None
    except ValueError:
        return None


def _flat(settings: Any, key: str = "") -> dict[str, Any]:
    """Returns settings by dotted key, without those on which a run's length depends."""
    if isinstance(settings, dict) and settings:
        parts = [_flat(value, f"{key}.{printable(name)}".lstrip(".")) for name, value in settings.items()]
        return {name: value for part in parts for name, value in part.items()}
    return {} if key in ("data.total_frames", "evaluate.path") else {key: settings}


def write_study(runs: Sequence[Run], out: Path) -> None:
    """Writes the file of a study."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / STUDY).open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*KEYS, *ROW, *TEXTS])
        for run in runs:
            for row in run.rows:
                numbers = [int(number) if number.is_integer() else number for number in row]
                writer.writerow([run.task, run.method, run.seed, *numbers, *(getattr(run, name) for name in TEXTS)])
