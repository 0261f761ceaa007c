"""Keeps `${...}` interpolations as they were written, so that no secret of the environment reaches a file."""

import contextlib
import functools
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import lightning as L
import yaml
from jsonargparse import Namespace

from dqs_lightning.registry import describe

Place = tuple[str | int, ...]
"""Keys and list indices from the root of a configuration to a value."""


def interpolations(config: Any, place: Place = ()) -> Iterator[tuple[Place, str]]:
    """Yields all strings with an interpolation in an unresolved configuration, with their places."""
    if isinstance(config, str) and "${" in config:
        yield place, config
    elif isinstance(config, Mapping | list):
        for key, value in config.items() if isinstance(config, Mapping) else enumerate(config):
            yield from interpolations(value, (*place, key))


def reads_environment(text: str) -> bool:
    """Returns whether an interpolation reads a value from outside the configuration, by a resolver such as `oc.env`."""
    return "${oc." in text


def put_back(config: Any, written: Mapping[Place, str]) -> None:
    """Replaces resolved values in place by what was written there."""
    for (*above, last), text in written.items():
        with contextlib.suppress(KeyError, IndexError, TypeError):  # the value has been replaced since
            part: Any = functools.reduce(operator.getitem, above, config)
            if not isinstance(part, dict) or last in part:
                part[last] = text


def as_yaml(resolved: str, written: Mapping[Place, str]) -> str:
    """Returns a resolved configuration, in YAML, with interpolations as they were written."""
    if not written:
        return resolved
    config = yaml.safe_load(resolved)
    put_back(config, written)
    return yaml.safe_dump(config, sort_keys=False)


def as_written(name: str, config: Namespace, written: Mapping[Place, str]) -> str:
    """Returns an environment's name in which values of the process's environment are interpolations, as written."""
    for place, text in written.items():
        value = config.get(".".join(map(str, place)))
        if place[:2] == ("data", "environment") and reads_environment(text) and value and isinstance(value, str):
            name = name.replace(value, text)
    return name


def hide_environment(written: Mapping[Place, str], model: L.LightningModule, data: L.LightningDataModule) -> None:
    """Restores the environment's interpolations in the hyperparameters of agent and data, which are saved.

    A checkpoint resolves them again when it is loaded.
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
