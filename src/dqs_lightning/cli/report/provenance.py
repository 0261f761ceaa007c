"""Where a report's figures come from: commit, versions, command, state and speed of each run."""

import csv
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from statistics import median
from typing import Any

from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.escape import printable
from dqs_lightning.cli.reading import read_json, read_text
from dqs_lightning.cli.report.runs import Run, command_of, find_files
from dqs_lightning.cli.report.scores import FILE

VERSIONS = ("torch", "lightning", "torchrl", "dm_control", "mujoco")
SPEED = "time/updates_per_s"
FASTEST = 1e12
"""Updates a second; a larger number is none of a run's."""
MANIFEST = "manifest.json"
_ROOTS = ("runs", "configs", "benchmarks")
_ABSOLUTE = re.compile(r"(?<![\w.~:/-])/[^\"'=,\[\]]*")


@dataclass(frozen=True)
class Origin:
    """What a run was made with.

    Attributes:
        commit: of each process that worked on the run, where they differ.
        versions: of the last one, as NAME VERSION.
        command: of the last one.
        state: as a sweep's manifest says; empty for other runs.
        updates_per_s: the median of what `metrics.csv` logged, None where it did not.
    """

    commit: str
    versions: str
    command: str
    state: str
    updates_per_s: float | None


def origin_of(run: Run) -> Origin:
    """Read what lies beside a run's scores."""
    last = run.entries[-1] if run.entries else {}
    commits = dict.fromkeys(printable(entry.get("commit") or "-") for entry in run.entries)
    recorded = last.get("versions")
    packages = recorded if isinstance(recorded, dict) else {}
    versions = {"python": last.get("python"), **{name: packages.get(name) for name in VERSIONS}}
    name = "/".join(run.folder.parts[-3:])
    state = _states(run.folder.parents[2] / MANIFEST).get(name, "") if len(run.folder.parents) > 2 else ""
    return Origin(
        commit=", ".join(re.sub(r"^([0-9a-f]{12})[0-9a-f]{28}", r"\1", commit) for commit in commits) or "-",
        versions=", ".join(f"{name} {printable(version, 40)}" for name, version in versions.items() if version) or "-",
        command=without_place(command_of(last)) or "-",
        state=state,
        updates_per_s=_updates_per_s(run.folder / "metrics.csv"),
    )


def without_scores(given: Sequence[Path]) -> list[str]:
    """Runs of the sweeps below the given paths that have not been evaluated once, as NAME (STATE)."""
    missing: dict[str, None] = {}
    for path in given:
        for file in find_files(path, MANIFEST):
            for name, state in _states(file).items():
                if not os.path.isfile(file.parent / name / FILE):
                    missing[f"{printable(name)} ({state})"] = None
    return list(missing)


def without_place(command: Sequence[Any]) -> str:
    """A command line; of absolute paths the part from runs/, configs/ or benchmarks/ on, or the last name."""

    def shorter(found: re.Match[str]) -> str:
        parts = PurePosixPath(found[0]).parts[1:]
        start = next((index for index, part in enumerate(parts) if part in _ROOTS), len(parts) - 1)
        return "/".join(parts[max(start, 0) :])

    return " ".join(_ABSOLUTE.sub(shorter, str(word)) for word in command)


def _states(manifest: Path) -> dict[str, str]:
    """State by run of a sweep; nothing where the file is none of dqs-sweep's."""
    try:
        return {name: printable(record["state"], 40) for name, record in read_json(manifest)["runs"].items()}
    except (InputError, KeyError, TypeError, AttributeError):
        return {}


def _updates_per_s(metrics: Path) -> float | None:
    """The median of the logged rate; a row that is still being written has none.

    Raises:
        InputError: when the file is there and is not one of CSV.
    """
    if not os.path.lexists(metrics):
        return None
    rates = []
    try:
        for row in csv.DictReader(read_text(metrics).splitlines()):
            try:
                rate = float(row.get(SPEED) or "")
            except ValueError:  # rows of other measurements leave it empty
                continue
            if 0 <= rate <= FASTEST:
                rates.append(rate)
    except csv.Error as error:
        raise InputError(f"{metrics}: not valid CSV: {printable(error)}") from error
    return median(rates) if rates else None
