"""Keeps `${...}` interpolations as they were written, so that no secret of the environment reaches a file."""

from collections.abc import Iterator, Mapping
from typing import Any

import lightning as L
import yaml
from jsonargparse import Namespace

from dqs_lightning.registry import describe

Place = tuple[str | int, ...]
"""Keys and list indices from the root of a configuration to a value."""


def interpolations(config: Any, place: Place = ()) -> Iterator[tuple[Place, str]]:
    """All strings with an interpolation in an unresolved configuration, with their places."""
    if isinstance(config, str):
        if "${" in config:
            yield place, config
    elif isinstance(config, Mapping):
        for key, value in config.items():
            yield from interpolations(value, (*place, key))
    elif isinstance(config, list):
        for index, value in enumerate(config):
            yield from interpolations(value, (*place, index))


def reads_environment(text: str) -> bool:
    """Whether an interpolation takes a value from outside the configuration, by a resolver such as `oc.env`."""
    return "${oc." in text


def put_back(config: Any, written: Mapping[Place, str]) -> None:
    """Replace resolved values in place by what was written there."""
    for place, text in written.items():
        part: Any = config
        last: Any = place[-1]
        try:
            for key in place[:-1]:
                part = part[key]
            if isinstance(part, list) or last in part:
                part[last] = text
        except (KeyError, IndexError, TypeError):  # the value's parent has been replaced since
            continue


def as_yaml(resolved: str, written: Mapping[Place, str]) -> str:
    """A resolved configuration, in YAML, with interpolations as they were written."""
    if not written:
        return resolved
    config = yaml.safe_load(resolved)
    put_back(config, written)
    return yaml.safe_dump(config, sort_keys=False)


def as_written(name: str, config: Namespace, written: Mapping[Place, str]) -> str:
    """Return an environment's name in which values of the process's environment are interpolations, as written."""
    for place, text in written.items():
        value = config.get(".".join(map(str, place)))
        if place[:2] == ("data", "environment") and reads_environment(text) and value and isinstance(value, str):
            name = name.replace(value, text)
    return name


def hide_environment(written: Mapping[Place, str], model: L.LightningModule, data: L.LightningDataModule) -> None:
    """Let the hyperparameters of agent and data, which checkpoints and loggers save, hold interpolations as written.

    Only those of the environment: a checkpoint resolves them again when it is loaded.
    """
    for root, module in ((("model", "init_args"), model), (("data",), data)):
        own = {
            place[len(root) :]: text
            for place, text in written.items()
            if place[: len(root)] == root and len(place) > len(root) and reads_environment(text)
        }
        if own:
            described = describe({str(place[0]): module.hparams[place[0]] for place in own})
            put_back(described, own)
            module.save_hyperparameters(described)
