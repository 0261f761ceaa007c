"""Reads a sweep file and lists its runs: tasks x variants x seeds. Starts and writes nothing."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dqs_lightning.cli.config_file import config_chain, read_config
from dqs_lightning.cli.errors import InputError, did_you_mean, refusing
from dqs_lightning.cli.sweep_space import SearchSettings, read_search

KEYS = ("config", "tasks", "seeds", "variants", "search", "overrides")
RESERVED = ("extends", "list", "run_dir", "ckpt_path", "seed_everything", "print_config", "trust")
"""Options of dqs-fit that the sweep sets itself, or that only a command line may set."""
FURTHER = "config="
"""The override that names a further configuration file, read after the task's: a method, which any task can have."""
MAX_SEED = 2**32 - 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_OVERRIDE = re.compile(r"([A-Za-z_][\w.]*)(\+?)=.*", re.DOTALL)


@dataclass(frozen=True)
class Run:
    """One training."""

    name: str  # task/variant/seed=k, also its place below the sweep's folder
    config: Path  # absolute
    digest: str  # of the values in all its configuration files, without comments
    settings: tuple[str, ...]  # options of dqs-fit: the overrides in order, and the seed
    folder: Path  # its run directory, absolute

    @property
    def command(self) -> list[str]:
        """The dqs-fit command line that starts or continues the run, and does nothing when it is finished."""
        place = [f"--run_dir={self.folder}", "--ckpt_path=auto"]
        return ["dqs-fit", "--config", str(self.config), *self.settings, *place]

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"


def read_sweep(file: Path) -> dict[str, Any]:
    """Reads and checks a sweep file: seeds, `variants` or `search`, `config` or `tasks`, and perhaps overrides."""
    content = read_config(file, key="")
    with refusing(f"{file}: ", InputError):
        _check(content)
    return content


def _check(content: dict[str, Any]) -> None:
    for key in content:
        if key not in KEYS:
            raise InputError(f"{key}: no such key; allowed are {', '.join(KEYS)}{did_you_mean(key, KEYS)}")
    if ("config" in content) == ("tasks" in content):
        raise InputError("config, tasks: one of the two must be there, and one only")
    if ("variants" in content) == ("search" in content):
        raise InputError("variants, search: one of the two must be there, and one only")
    if "seeds" not in content:
        raise InputError("seeds: must be there")
    for name, path in _tasks(content).items():
        if not isinstance(path, str):
            raise InputError(f"tasks.{name}={path}: must be the path of a configuration file")
    seeds = content["seeds"]
    if not isinstance(seeds, list) or not seeds:
        raise InputError(f"seeds={seeds}: must be a list of one or more whole numbers")
    for seed in seeds:
        if type(seed) is not int or not 0 <= seed <= MAX_SEED:  # a bool is an int
            raise InputError(f"seeds={seed}: allowed are whole numbers from 0 to {MAX_SEED}")
    _refuse_twice("seeds", seeds)
    if "variants" in content:
        for name, overrides in _mapping("variants", content["variants"]).items():
            _check_overrides(f"variants.{name}", overrides)  # may be empty: the configuration as it is
    _check_overrides("overrides", content.get("overrides", []))
    if content.get("overrides") == []:
        raise InputError("overrides=[]: must be a list of one or more, or be left out")
    if "search" in content:
        search_of(content)


def search_of(content: dict[str, Any]) -> SearchSettings:
    """Returns the `search` section of a sweep file's content."""
    return read_search(content["search"], RESERVED, content.get("overrides", []))


def expand(file: Path, out: Path) -> list[Run]:
    """Lists the runs of a sweep file with variants, in folders below `out`."""
    content = read_sweep(file)
    return runs_of(file, content, content["variants"], out)


def runs_of(file: Path, content: dict[str, Any], variants: dict[str, list[str]], out: Path) -> list[Run]:
    """Lists the runs of some variants, seed by seed, so that a wrong one fails before its other seeds are trained.

    Configurations in the file, those of overrides `config=NAME` too, are in its folder or shipped. Runs get folders
    below `out`.
    """
    families: list[list[Run]] = []  # each of all seeds
    for task, path in _tasks(content).items():
        config, chain = _chain(file, path, "config" if "config" in content else f"tasks.{task}")
        for variant, own in variants.items():
            settings, read = [], list(chain)
            for override in (*content.get("overrides", []), *own):
                if override.startswith(FURTHER):
                    key = "search" if "search" in content else f"variants.{variant}"
                    further, more = _chain(file, override.removeprefix(FURTHER), f"{key}: {override}")
                    override, read = f"{FURTHER}{further}", read + more
                settings.append(f"--{override}")
            digest = hashlib.sha256(json.dumps(read, sort_keys=True, default=str).encode()).hexdigest()
            names = {seed: f"{task}/{variant}/seed={seed}" for seed in content["seeds"]}
            families.append(
                [
                    Run(name, config, digest, (*settings, f"--seed_everything={seed}"), out.resolve() / name)
                    for seed, name in names.items()
                ]
            )
    return [run for of_one_seed in zip(*families, strict=True) for run in of_one_seed]


def _tasks(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the configuration files by task; a single one has the name of its file."""
    if "tasks" in content:
        return _mapping("tasks", content["tasks"])
    path = content["config"]
    if not isinstance(path, str):
        raise InputError(f"config={path}: must be the path of one configuration file; several go under tasks")
    return {Path(path).stem: path}


def _mapping(key: str, value: Any) -> dict[str, Any]:
    """Checks and returns the value of `tasks` or `variants`, whose names become folders."""
    if not isinstance(value, dict) or not value:
        raise InputError(f"{key}={value}: must be one or more of NAME: VALUE")
    for name in value:
        if not _NAME.fullmatch(name):
            raise InputError(f"{key}.{name}: a name has up to 100 letters, digits and ._+-, a letter or digit first")
    _refuse_twice(key, (name.lower() for name in value))  # one folder where the disk ignores case
    return value


def _check_overrides(key: str, overrides: Any) -> None:
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
    for item, count in Counter(items).items():
        if count > 1:
            raise InputError(f"{key}: {item} is given twice")


def _chain(file: Path, path: str, key: str) -> tuple[Path, list[dict[str, Any]]]:
    """Returns a configuration's file and the contents of it and those that it extends; see `config_chain`."""
    chain = config_chain(Path(path), f"{file}: {key}: ", file.parent.resolve())
    return next(iter(chain)).resolve(), list(chain.values())
