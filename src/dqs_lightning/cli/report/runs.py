"""Finds the runs of a report: run directories and studies at and below some paths."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.report.files import SCORES, STUDY, Run, run_of, runs_of
from dqs_lightning.sharing.text import printable


def read_runs(given: Sequence[Path], names: Mapping[Path, str] | None = None) -> list[Run]:
    """Reads all runs at and below the given paths; a run that two of them reach counts once.

    Refuses a path or a name without a run, and two runs of one method with the same seed or other settings.

    Args:
        given: run directories, studies, or folders of them.
        names: METHOD or TASK/METHOD of the runs at and below a path; of several paths the deepest is used. A run of a
            study has the path STUDY/TASK/METHOD/seed=K.

    Returns:
        The runs by task, method (in the order in which they are found) and seed.
    """
    runs: dict[Path, Run] = {}
    for path in given:
        files = sorted(find_files(path, SCORES) + find_files(path, STUDY))
        if not files:
            raise InputError(f"RUNS={path}: no {SCORES} or {STUDY} in it or below; give runs, or folders of them")
        for file in files:
            folder = _resolved(file.parent)
            found = runs_of(folder) if file.name == STUDY else {folder: run_of(folder, _shown(path, file))}
            runs.update((place, run) for place, run in found.items() if place not in runs)
    for path, name in (names or {}).items():
        if not any(place.is_relative_to(_resolved(path)) for place in runs):
            raise InputError(f"--name {path}={name}: there is no run at or below that path")
    resolved = {_resolved(path): name for path, name in (names or {}).items()}
    for place, run in runs.items():
        if above := [path for path in resolved if place.is_relative_to(path)]:
            task, _, method = resolved[max(above, key=lambda path: len(path.parts))].rpartition("/")
            runs[place] = replace(run, task=printable(task) or run.task, method=printable(method), named=True)
    methods = list(dict.fromkeys(run.method for run in runs.values()))
    ordered = sorted(runs.values(), key=lambda run: (run.task, methods.index(run.method), run.seed))
    _refuse_mixtures(ordered)
    return ordered


def find_files(given: Path, name: str) -> list[Path]:
    """Returns all entries of a name in a folder and below it; links to folders are not followed."""

    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror or error}") from error

    if not os.path.isdir(given):
        raise InputError(f"RUNS={given}: no such folder")
    walked = os.walk(given, onerror=fail)
    return [Path(folder) / name for folder, folders, files in walked if name in (*folders, *files)]


def _resolved(path: Path) -> Path:
    """Returns the path without links; unlike `Path.resolve` for any path, such as a link to itself."""
    return Path(os.path.realpath(path))


def _shown(given: Path, file: Path) -> str:
    """Returns a run's folder below the path that was given; of an absolute path only its last part is shown."""
    base = Path(_resolved(given).name) if given.is_absolute() else given
    shown = (base / file.parent.relative_to(given)).as_posix()
    return printable(_resolved(file.parent).name if shown == "." else shown)


def _refuse_mixtures(runs: Sequence[Run]) -> None:
    """Refuses runs of one method that are not its seeds. Keys that only one version knows are not compared."""
    seeds: dict[tuple[str, str, int], Run] = {}
    first: dict[tuple[str, str], Run] = {}
    for run in runs:
        both = f"both are {run.method} on {run.task}"
        if (one := seeds.setdefault((run.task, run.method, run.seed), run)) is not run:
            raise InputError(
                f"{one.run}, {run.run}: {both} with seed {run.seed}\n"
                "Leave one out, or tell them apart by --name PATH=METHOD"
            )
        one = run if run.named else first.setdefault((run.task, run.method), run)
        for key, value in one.settings.items():
            if run.settings.get(key, value) != value:
                here, there = printable(value, 100), printable(run.settings[key], 100)
                raise InputError(
                    f"{one.run}, {run.run}: {both}, but {key} is {here} in the first and {there} in the second\n"
                    "Tell them apart, or say that they are one, by --name PATH=METHOD"
                )
