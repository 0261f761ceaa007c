"""Metadata of a policy: what a controller must know beside the graph, as values that JSON can hold."""

from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from itertools import pairwise
from typing import Any

import numpy as np

from dqs_lightning.envs import Environment
from dqs_lightning.envs.base import one_line
from dqs_lightning.envs.interface import Interface
from dqs_lightning.envs.transformed import transformed
from dqs_lightning.envs.transforms import OBSERVATION, Transform
from dqs_lightning.registry import describe

MAPPING = "environment_action = low + (action + 1) / 2 * (high - low)"
"""From the action of the policy to that of the environment, with low and high of `environment_action_*`."""
PACKAGES = ("dqs-lightning", "torch")
"""Packages whose versions are always given."""


def task_facts(environment: Environment, transforms: Sequence[Transform], sizes: tuple[int, int]) -> dict[str, Any]:
    """Returns what is known of an environment for an agent.

    Where the environment cannot be constructed, such as without its renderer, `unknown` is the reason, and the values
    that it would give are None.

    Args:
        environment: the agent's.
        transforms: of its observations; those of rewards are left out.
        sizes: dimensions of the agent's observation and action.

    Raises:
        ValueError: when the environment has other sizes; one line.
    """
    given = [transform for transform in transforms if OBSERVATION in transform.in_keys]
    facts = {
        "task": environment.name,
        "action_repeat": environment.action_repeat,
        "control_period_s": None,
        "observation": None,
        "observation_transforms": describe(given),
        "environment_action_low": None,
        "environment_action_high": None,
        "action_mapping": MAPPING,
    }
    try:
        found = transformed(environment, given).interface()
    except Exception as error:  # of another package, by a simulator
        return {
            **facts,
            "versions": versions(),
            "unknown": str(error) if type(error) is ValueError else one_line(error),
        }
    numbers = sum(part.size for part in found.observation)
    own = sizes[0] if given or not numbers else numbers, len(found.action_low) or sizes[1]
    if own != sizes:
        raise ValueError(
            f"its environment has {own[0]} observations and {own[1]} actions, its agent {sizes[0]} and {sizes[1]}"
        )
    return {
        **facts,
        "control_period_s": found.control_period_s,
        "observation": slices(found, sizes[0]),
        "environment_action_low": list(found.action_low) or [-1.0] * sizes[1],
        "environment_action_high": list(found.action_high) or [1.0] * sizes[1],
        "versions": versions(found.modules),
    }


def slices(interface: Interface, observation_dim: int) -> list[dict[str, Any]]:
    """Returns name, start and stop of each part of the flat observation; one part where they have no names."""
    parts = interface.observation
    ends = np.cumsum([0, *(part.size for part in parts)]).tolist()
    if ends[-1] != observation_dim:
        return [{"name": OBSERVATION, "start": 0, "stop": observation_dim}]
    return [
        {"name": part.name, "start": start, "stop": stop}
        for part, (start, stop) in zip(parts, pairwise(ends), strict=True)
    ]


def versions(modules: Iterable[str] = ()) -> dict[str, str]:
    """Returns the versions of this package, torch, and the packages that have these top-level modules."""
    distributions = packages_distributions()
    found = {}
    for name in dict.fromkeys((*PACKAGES, *modules)):
        named = distributions.get(name, [name])  # several packages can contribute to one module
        name = name if name in named else named[0]
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # imported from a folder
            continue
    return found
