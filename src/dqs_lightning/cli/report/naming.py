"""How the runs of a report are told apart, from what their files say of them.

The task is the environment's name in `config.yaml`; without that file, TASK of the recorded
`--run_dir=.../TASK/VARIANT/seed=K`, or the name of the recorded `--config` file. The method is the folder above
`seed=K` (a sweep's variant) or above a time such as `20260101-120000` (dqs-fit's own layout); in any other folder it
is the agent's class, in small letters, and without `config.yaml` the folder above. The seed is `seed_everything` of
`config.yaml` or of the recorded command, the K of `seed=K`, or dqs-fit's default, 0.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dqs_lightning.cli.escape import printable

_SEED = re.compile(r"seed=(\d+)", re.ASCII)
_TIME = re.compile(r"\d{8}-\d{6}")


def environment_name(environment: Mapping[str, Any]) -> str | None:
    """What `Environment.name` says, from the environment's part of a configuration; no class is imported for it."""
    match environment.get("init_args"):
        case {"domain": domain, "task": task}:
            return printable(f"{printable(domain)}-{printable(task)}")
        case {"label": str(label)}:
            return printable(label)
        case {"id": str(name)}:
            return printable(name.rpartition(":")[2].replace("/", "-"))
        case {"num_modes": count}:
            return printable(f"mixture-{printable(count)}")
    return _class_name(environment.get("class_path"))


def option(command: Sequence[str], name: str) -> str | None:
    """The last value of an option in a command's words, --name=VALUE or --name VALUE."""
    value = None
    for index, word in enumerate(command):
        if word.startswith(f"--{name}="):
            value = word.partition("=")[2]
        elif word == f"--{name}" and index + 1 < len(command):
            value = command[index + 1]
    return value


def task_of(config: Mapping[str, Any], command: Sequence[str]) -> str | None:
    """The task of a run; None where neither its configuration nor its command says it."""
    if name := environment_name(inside(config, "data", "environment")):
        return name
    place = Path(option(command, "run_dir") or "").parts
    if len(place) > 2 and _SEED.fullmatch(place[-1]):
        return printable(place[-3])
    return printable(Path(option(command, "config") or "").stem) or None


def method_of(folder: Path, config: Mapping[str, Any]) -> str:
    """The method of a run in a folder."""
    laid_out = _SEED.fullmatch(folder.name) or _TIME.fullmatch(folder.name)
    agent = None if laid_out else _class_name(inside(config, "model").get("class_path"))
    return agent or printable(folder.parent.name) or "-"


def seed_of(folder: Path, config: Mapping[str, Any], command: Sequence[str]) -> int:
    """The seed of a run in a folder."""
    found = _SEED.fullmatch(folder.name)
    for value in (config.get("seed_everything"), option(command, "seed_everything"), found and found[1]):
        if value is not None and re.fullmatch(r"[0-9]{1,20}", printable(value)):
            return int(value)
    return 0


def inside(config: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """A part of a configuration; empty where it has none."""
    part: Any = config
    for key in keys:
        part = part.get(key) if isinstance(part, Mapping) else None
    return part if isinstance(part, dict) else {}


def _class_name(path: Any) -> str | None:
    """The last part of a class path, in small letters; None where there is no path."""
    return printable(path).rpartition(".")[2].lower() or None if path else None
