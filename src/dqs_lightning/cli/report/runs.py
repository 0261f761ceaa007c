"""Run directories of a report: found and read. Nothing here writes.

`naming` tells them apart by task, method and seed; `--name` overrules task and method.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.escape import printable
from dqs_lightning.cli.reading import read_json, read_yaml
from dqs_lightning.cli.report.naming import method_of, seed_of, task_of
from dqs_lightning.cli.report.scores import FILE, Scores, read_scores


@dataclass(frozen=True)
class Run:
    """One training that has been evaluated.

    Attributes:
        folder: its run directory, resolved.
        shown: the same as it may be printed, below the path that was given.
        task: of the environment.
        method: runs of one task and method differ in their seed only.
        seed: of the whole run.
        scores: its evaluations.
        config: its `config.yaml`, empty where there is none.
        entries: of its `env.json`, one for each process that worked on it.
        named: whether `--name` gave the method.
    """

    folder: Path
    shown: str
    task: str
    method: str
    seed: int
    scores: Scores
    config: dict[str, Any]
    entries: list[dict[str, Any]]
    named: bool = False


def read_runs(given: Sequence[Path], names: Mapping[Path, str] | None = None) -> list[Run]:
    """All runs at and below the given paths, in the order of the paths; a run that two of them reach counts once.

    Args:
        given: run directories, or folders of them.
        names: METHOD or TASK/METHOD of the runs at and below a path; of several paths the deepest holds.

    Raises:
        InputError: when a path has no run, a run's files cannot be read, its task is not known, a name names no run,
            or two runs of one method have the same seed or other settings.
    """
    resolved = {_resolved(path, f"--name {path}={name}"): name for path, name in (names or {}).items()}
    runs: dict[Path, Run] = {}
    for path in given:
        files = find_files(path, FILE)
        if not files:
            raise InputError(f"RUNS={path}: no {FILE} in it or below; give run directories, or folders of them")
        for file in files:
            folder = _resolved(file.parent, f"RUNS={path}")
            if folder not in runs:
                runs[folder] = _read_run(folder, _shown(path, file.parent), resolved)
    for path, original in zip(resolved, names or {}, strict=True):
        if not any(folder.is_relative_to(path) for folder in runs):
            raise InputError(f"--name {original}={resolved[path]}: there is no run at or below that path")
    _refuse_mixtures(list(runs.values()))
    return list(runs.values())


def grouped(runs: Iterable[Run]) -> dict[str, dict[str, list[Run]]]:
    """Runs by task and method; tasks and seeds in order, methods in that of the runs."""
    found = list(runs)
    methods = list(dict.fromkeys(run.method for run in found))
    groups: dict[str, dict[str, list[Run]]] = {}
    for task in sorted({run.task for run in found}):
        of_task = sorted((run for run in found if run.task == task), key=lambda run: run.seed)
        by_method = {method: [run for run in of_task if run.method == method] for method in methods}
        groups[task] = {method: members for method, members in by_method.items() if members}
    return groups


def find_files(given: Path, name: str) -> list[Path]:
    """All entries of a name in a folder and below it, in order; links to folders are not followed.

    Raises:
        InputError: when there is no such folder, or one below it cannot be read.
    """

    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror or error}") from error

    try:
        if not given.is_dir():
            raise InputError(f"RUNS={given}: no such folder")
    except OSError as error:
        raise InputError(f"RUNS={given}: {error.strerror or error}") from error
    found = [
        Path(folder) / name for folder, folders, files in os.walk(given, onerror=fail) if name in (*folders, *files)
    ]
    return sorted(found)


def _resolved(path: Path, key: str) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads back to itself
        raise InputError(f"{key}: {error}") from error


def _shown(given: Path, folder: Path) -> str:
    """A run's folder below the path that was given; of an absolute path only its last part is told."""
    base = Path(given.resolve().name) if given.is_absolute() else given
    shown = (base / folder.relative_to(given)).as_posix()
    return printable(folder.resolve().name if shown == "." else shown)


def _read_run(folder: Path, shown: str, names: Mapping[Path, str]) -> Run:
    scores = read_scores(folder / FILE)
    config, entries = _config(folder / "config.yaml"), _entries(folder / "env.json")
    command = command_of(entries[-1]) if entries else []
    above = [path for path in names if folder.is_relative_to(path)]
    deepest = max(above, key=lambda path: len(path.parts), default=None)
    named_task, _, named_method = (printable(part) for part in names[deepest].rpartition("/")) if deepest else [""] * 3
    task = named_task or task_of(config, command)
    if not task:
        raise InputError(f"{folder}: neither config.yaml nor env.json tells its task; give --name PATH=TASK/METHOD")
    method = named_method or method_of(folder, config)
    return Run(
        folder, shown, task, method, seed_of(folder, config, command), scores, config, entries, bool(named_method)
    )


def command_of(entry: Mapping[str, Any]) -> list[str]:
    """The words of the command line that an entry of env.json holds."""
    words = entry.get("command")
    return [printable(word, longest=2000) for word in words] if isinstance(words, list) else []


def _config(file: Path) -> dict[str, Any]:
    """What config.yaml holds; empty where there is no such file."""
    content = read_yaml(file) if os.path.lexists(file) else {}
    if not isinstance(content, dict):
        raise InputError(f"{file}: not what dqs-fit writes: must hold keys and values")
    return content


def _entries(file: Path) -> list[dict[str, Any]]:
    """What env.json holds, one entry for each process that worked on the run; empty where there is no such file."""
    content = read_json(file) if os.path.lexists(file) else []
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise InputError(f"{file}: not what dqs-fit writes: must be a list of objects")
    return content


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a method: agent, data and kind of evaluation, by dotted key. How long a run goes on is no part."""
    flat: dict[str, Any] = {}

    def add(key: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                add(f"{key}.{printable(name)}", inner)
        else:
            flat[key] = value

    for section in ("model", "data", "evaluate"):
        add(section, config.get(section))
    return {key: value for key, value in flat.items() if key not in ("data.total_frames", "evaluate.path")}


def _refuse_mixtures(runs: Sequence[Run]) -> None:
    """Runs that would be averaged must be seeds of one method. Keys that only one version knows are not compared."""
    for task, methods in grouped(runs).items():
        for method, members in methods.items():
            seen: dict[int, Run] = {}
            for run in members:
                if run.seed in seen:
                    raise InputError(
                        f"{seen[run.seed].shown}, {run.shown}: both are {method} on {task} with seed {run.seed}\n"
                        "Leave one out, or tell them apart by --name PATH=METHOD"
                    )
                seen[run.seed] = run
            first, *others = [run for run in members if run.config and not run.named] or [members[0]]
            for run in others:
                one, other = _settings(first.config), _settings(run.config)
                for key in one:
                    if key in other and one[key] != other[key]:
                        here, there = printable(one[key], 100), printable(other[key], 100)
                        raise InputError(
                            f"{first.shown}, {run.shown}: both are {method} on {task}, but {key} is {here} in the "
                            f"first and {there} in the second\n"
                            "Tell them apart, or say that they are one, by --name PATH=METHOD"
                        )
