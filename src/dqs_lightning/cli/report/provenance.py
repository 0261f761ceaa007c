"""Where a report's figures come from: commit, versions, command, state and speed of each run."""

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from statistics import median
from typing import Any

from dqs_lightning.cli.report.runs import Run
from dqs_lightning.cli.report.scores import FILE

VERSIONS = ("torch", "lightning", "torchrl", "dm_control", "mujoco")
SPEED = "time/updates_per_s"
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
    commits = dict.fromkeys(str(entry.get("commit") or "-") for entry in run.entries)
    versions = {"python": last.get("python"), **{name: (last.get("versions") or {}).get(name) for name in VERSIONS}}
    name = "/".join(run.folder.parts[-3:])
    state = _states(run.folder.parents[2] / "manifest.json").get(name, "") if len(run.folder.parents) > 2 else ""
    return Origin(
        commit=", ".join(re.sub(r"^([0-9a-f]{12})[0-9a-f]{28}", r"\1", commit) for commit in commits) or "-",
        versions=", ".join(f"{name} {version}" for name, version in versions.items() if version) or "-",
        command=without_place(last.get("command") or []) or "-",
        state=state,
        updates_per_s=_updates_per_s(run.folder / "metrics.csv"),
    )


def without_scores(given: Sequence[Path]) -> list[str]:
    """Runs of the sweeps below the given paths that have not been evaluated once, as NAME (STATE)."""
    missing: dict[str, None] = {}
    for path in given:
        for file in sorted(path.rglob("manifest.json")):
            for name, state in _states(file).items():
                if not (file.parent / name / FILE).is_file():
                    missing[f"{name} ({state})"] = None
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
        return {name: str(record["state"]) for name, record in json.loads(manifest.read_text())["runs"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _updates_per_s(metrics: Path) -> float | None:
    """The median of the logged rate; a row that is still being written has none."""
    if not metrics.is_file():
        return None
    rates = []
    with metrics.open(newline="") as stream:
        for row in csv.DictReader(stream):
            try:
                rates.append(float(row.get(SPEED) or ""))
            except ValueError:  # rows of other measurements leave it empty
                continue
    return median(rates) if rates else None
