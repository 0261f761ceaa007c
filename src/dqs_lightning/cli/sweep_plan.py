"""A sweep file and the runs that it describes: tasks x variants x seeds. Nothing here starts or writes anything."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dqs_lightning.cli.config_file import config_chain, read_config
from dqs_lightning.cli.errors import InputError
from dqs_lightning.registry import nearest

KEYS = ("config", "tasks", "seeds", "variants", "overrides")
RESERVED = ("extends", "run_dir", "ckpt_path", "seed_everything", "print_config", "trust")
"""Options of dqs-fit that the sweep sets itself, or that only a command line may set."""
FURTHER = "config="
"""The override that names a further configuration file, read after the task's: a method, which any task can have."""
MAX_SEED = 2**32 - 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_OVERRIDE = re.compile(r"([A-Za-z_][\w.]*)(\+?)=.*", re.DOTALL)


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: task/variant/seed=k, also its place below the sweep's folder.
        config: its configuration file, absolute.
        digest: of what that file, further ones and all that they extend say; comments are no part of it.
        settings: options of dqs-fit, the overrides in order and the seed.
        folder: its run directory, absolute.
    """

    name: str
    config: Path
    digest: str
    settings: tuple[str, ...]
    folder: Path

    @property
    def command(self) -> list[str]:
        """The dqs-fit command line, which starts the run, continues it, and leaves it alone when it is finished."""
        place = [f"--run_dir={self.folder}", "--ckpt_path=auto"]
        return ["dqs-fit", "--config", str(self.config), *self.settings, *place]

    @property
    def checkpoint(self) -> Path:
        """The checkpoint of a run that trained for a while."""
        return self.folder / "checkpoints" / "last.ckpt"


def read_sweep(file: Path) -> dict[str, Any]:
    """Read and check a sweep file: KEYS, of which `overrides` is optional, and one of `config` and `tasks` is there.

    Raises:
        InputError: when a key is unknown or missing, or a value is not allowed.
    """
    content = read_config(file, key="")
    try:
        for key in content:
            if key not in KEYS:
                hint = f"\nDid you mean {found}?" if (found := nearest(key, KEYS)) else ""
                raise InputError(f"{key}: no such key; allowed are {', '.join(KEYS)}{hint}")
        if ("config" in content) == ("tasks" in content):
            raise InputError("config, tasks: one of the two must be there, and one only")
        for key in ("seeds", "variants"):
            if key not in content:
                raise InputError(f"{key}: must be there")
        for name, path in _tasks(content).items():
            if not isinstance(path, str):
                raise InputError(f"tasks.{name}={path}: must be the path of a configuration file")
        _check_seeds(content["seeds"])
        for name, overrides in _mapping("variants", content["variants"]).items():
            _check_overrides(f"variants.{name}", overrides)
        _check_overrides("overrides", content.get("overrides", []))
        if content.get("overrides") == []:
            raise InputError("overrides=[]: must be a list of one or more, or be left out")
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    return content


def expand(file: Path, out: Path) -> list[Run]:
    """List the runs of a sweep file, seed by seed, so that a wrong variant shows before its other seeds are trained.

    Args:
        file: the sweep file; paths in it are relative to its folder, those of overrides `config=PATH` too.
        out: the sweep's folder, below which each run has its own.

    Raises:
        InputError: when the file is wrong, or a configuration that it names is missing or not readable.
    """
    content = read_sweep(file)
    families: list[tuple[str, Path, str, list[str]]] = []
    for task, path in _tasks(content).items():
        config, chain = _chain(file, path, "config" if "config" in content else f"tasks.{task}")
        for variant, own in content["variants"].items():
            overrides, read = [], list(chain)
            for override in (*content.get("overrides", []), *own):
                if override.startswith(FURTHER):
                    further, more = _chain(file, override.removeprefix(FURTHER), f"variants.{variant}: {override}")
                    override, read = f"{FURTHER}{further}", read + more
                overrides.append(f"--{override}")
            digest = hashlib.sha256(json.dumps(read, sort_keys=True, default=str).encode()).hexdigest()
            families.append((f"{task}/{variant}", config, digest, overrides))
    runs = []
    for seed in content["seeds"]:
        for family, config, digest, overrides in families:
            name, settings = f"{family}/seed={seed}", (*overrides, f"--seed_everything={seed}")
            runs.append(Run(name, config, digest, settings, out.resolve() / name))
    return runs


def _tasks(content: dict[str, Any]) -> dict[str, Any]:
    """Configuration files by task; a single one is called as its file is."""
    if "tasks" in content:
        return _mapping("tasks", content["tasks"])
    path = content["config"]
    if not isinstance(path, str):
        raise InputError(f"config={path}: must be the path of one configuration file; several go under tasks")
    return {Path(path).stem: path}


def _mapping(key: str, value: Any) -> dict[str, Any]:
    """The value of `tasks` or `variants`, whose names become folders."""
    if not isinstance(value, dict) or not value:
        raise InputError(f"{key}={value}: must be one or more of NAME: VALUE")
    for name in value:
        if not _NAME.fullmatch(name):
            raise InputError(f"{key}.{name}: a name has up to 100 letters, digits and ._+-, a letter or digit first")
    _refuse_twice(key, (name.lower() for name in value))  # one folder where the disk ignores case
    return value


def _check_seeds(seeds: Any) -> None:
    if not isinstance(seeds, list) or not seeds:
        raise InputError(f"seeds={seeds}: must be a list of one or more whole numbers")
    for seed in seeds:
        if type(seed) is not int or not 0 <= seed <= MAX_SEED:  # a bool is an int
            raise InputError(f"seeds={seed}: allowed are whole numbers from 0 to {MAX_SEED}")
    _refuse_twice("seeds", seeds)


def _check_overrides(key: str, overrides: Any) -> None:
    """A variant's list may be empty: the configuration as it is."""
    if not isinstance(overrides, list):
        raise InputError(f"{key}={overrides}: must be a list of overrides, such as [data.num_envs=8]")
    found = [_OVERRIDE.fullmatch(override) if isinstance(override, str) else None for override in overrides]
    for override, match in zip(overrides, found, strict=True):
        if not match:
            raise InputError(f"{key}={override}: must be an option of dqs-fit without dashes, such as data.num_envs=8")
        if match[1] in RESERVED:
            raise InputError(f"{key}={override}: a sweep may not set {', '.join(RESERVED)}")
    _refuse_twice(key, (match[1] for match in found if match and not match[2] and match[1] != "config"))


def _refuse_twice(key: str, items: Iterable[Any]) -> None:
    seen = set()
    for item in items:
        if item in seen:
            raise InputError(f"{key}: {item} is given twice")
        seen.add(item)


def _chain(file: Path, path: str, key: str) -> tuple[Path, list[dict[str, Any]]]:
    """Returns a configuration, found from the sweep file's folder, and the contents of it and those that it extends."""
    try:
        config = (file.parent / path).resolve()
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: {key}: no such file: {error}") from error
    return config, list(config_chain(config, f"{file}: {key}: ").values())
