"""Run directories of a report: found, read, and told apart by task, method and seed. Nothing here writes.

Told apart how: the task is the environment's name in `config.yaml`; without that file, TASK of the recorded
`--run_dir=.../TASK/VARIANT/seed=K`, or the name of the recorded `--config` file. The method is the folder above
`seed=K` (a sweep's variant) or above a time such as `20260101-120000` (dqs-fit's own layout); in any other folder it
is the agent's class, in small letters, and without `config.yaml` the folder above. The seed is `seed_everything` of
`config.yaml` or of the recorded command, the K of `seed=K`, or dqs-fit's default, 0. `--name` overrules task and
method.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.report.scores import FILE, Scores, read_scores

_SEED = re.compile(r"seed=(\d+)")
_TIME = re.compile(r"\d{8}-\d{6}")


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
    resolved = {path.resolve(): name for path, name in (names or {}).items()}
    runs: dict[Path, Run] = {}
    for path in given:
        if not path.is_dir():
            raise InputError(f"RUNS={path}: no such folder")
        files = sorted(path.rglob(FILE))
        if not files:
            raise InputError(f"RUNS={path}: no {FILE} in it or below; give run directories, or folders of them")
        for file in files:
            folder = file.parent.resolve()
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


def environment_name(environment: Mapping[str, Any]) -> str | None:
    """What `Environment.name` says, from the environment's part of a configuration; no class is imported for it."""
    match environment.get("init_args"):
        case {"domain": domain, "task": task}:
            return f"{domain}-{task}"
        case {"label": str(label)}:
            return label
        case {"id": str(name)}:
            return name.rpartition(":")[2].replace("/", "-")
        case {"num_modes": count}:
            return f"mixture-{count}"
    return str(environment["class_path"]).rpartition(".")[2].lower() if "class_path" in environment else None


def option(command: Sequence[str], name: str) -> str | None:
    """The last value of an option in a command's words, --name=VALUE or --name VALUE."""
    value = None
    for index, word in enumerate(command):
        if word.startswith(f"--{name}="):
            value = word.partition("=")[2]
        elif word == f"--{name}" and index + 1 < len(command):
            value = command[index + 1]
    return value


def _shown(given: Path, folder: Path) -> str:
    """A run's folder below the path that was given; of an absolute path only its last part is told."""
    base = Path(given.resolve().name) if given.is_absolute() else given
    shown = (base / folder.relative_to(given)).as_posix()
    return folder.resolve().name if shown == "." else shown


def _read_run(folder: Path, shown: str, names: Mapping[Path, str]) -> Run:
    scores = read_scores(folder / FILE)
    config, entries = _read(folder / "config.yaml", dict), _read(folder / "env.json", list)
    command = [str(word) for word in entries[-1].get("command", [])] if entries else []
    above = [path for path in names if folder.is_relative_to(path)]
    deepest = max(above, key=lambda path: len(path.parts), default=None)
    named_task, _, named_method = names[deepest].rpartition("/") if deepest else ("", "", "")
    task = named_task or _task(config, command)
    if not task:
        raise InputError(f"{folder}: neither config.yaml nor env.json tells its task; give --name PATH=TASK/METHOD")
    method = named_method or _method(folder, config)
    return Run(folder, shown, task, method, _seed(folder, config, command), scores, config, entries, bool(named_method))


def _read(file: Path, kind: type[dict[str, Any]] | type[list[Any]]) -> Any:
    """What config.yaml or env.json holds; empty where there is no such file."""
    if not file.is_file():
        return kind()
    try:
        content = yaml.safe_load(file.read_text()) if file.suffix == ".yaml" else json.loads(file.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{file}: cannot be read: {' '.join(str(error).split())[:200]}") from error
    entries = content if isinstance(content, list) else []
    if not isinstance(content, kind) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{file}: not what dqs-fit writes")
    return content


def _inside(config: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """A part of a configuration; empty where it has none."""
    part: Any = config
    for key in keys:
        part = part.get(key) if isinstance(part, Mapping) else None
    return part if isinstance(part, dict) else {}


def _task(config: Mapping[str, Any], command: Sequence[str]) -> str | None:
    if name := environment_name(_inside(config, "data", "environment")):
        return name
    place = Path(option(command, "run_dir") or "").parts
    if len(place) > 2 and _SEED.fullmatch(place[-1]):
        return place[-3]
    file = option(command, "config")
    return Path(file).stem if file else None


def _method(folder: Path, config: Mapping[str, Any]) -> str:
    laid_out = _SEED.fullmatch(folder.name) or _TIME.fullmatch(folder.name)
    agent = _inside(config, "model").get("class_path")
    return folder.parent.name if laid_out or not agent else str(agent).rpartition(".")[2].lower()


def _seed(folder: Path, config: Mapping[str, Any], command: Sequence[str]) -> int:
    found = _SEED.fullmatch(folder.name)
    for value in (config.get("seed_everything"), option(command, "seed_everything"), found and found[1], 0):
        if value is not None and re.fullmatch(r"\d+", str(value)):
            return int(value)
    return 0


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a method: agent, data and kind of evaluation, by dotted key. How long a run goes on is no part."""
    flat: dict[str, Any] = {}

    def add(key: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                add(f"{key}.{name}", inner)
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
                        raise InputError(
                            f"{first.shown}, {run.shown}: both are {method} on {task}, but {key} is {one[key]} in the "
                            f"first and {other[key]} in the second\n"
                            "Tell them apart, or say that they are one, by --name PATH=METHOD"
                        )
