"""Goals of an environment: where they are in its observation, and what a transition would earn for another goal."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict
from gymnasium.spaces.utils import flatdim
from numpy.typing import NDArray
from torch import Tensor

ACHIEVED, DESIRED = "achieved_goal", "desired_goal"
GoalFunction = Callable[[Any, Any, dict[str, Any]], Any]
"""Gymnasium's `compute_reward` or `compute_terminated`: achieved goal, desired goal, info (empty here)."""


class Goals:
    """The goals of a goal environment of Gymnasium, as gymnasium-robotics defines them.

    Args:
        env: its observation is a Dict with the Boxes `achieved_goal` and `desired_goal`, and it has the methods
            `compute_reward` and `compute_terminated`, for which alone it is used.

    Attributes:
        achieved: slice of the flat observation with the achieved goal.
        desired: slice with the desired goal, of the same size.

    Raises:
        ValueError: for an environment without goals; the message names what is missing.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        space = env.observation_space
        parts = space.spaces if isinstance(space, Dict) else {}
        achieved, desired = parts.get(ACHIEVED), parts.get(DESIRED)
        if not (isinstance(achieved, Box) and isinstance(desired, Box) and achieved.shape == desired.shape):
            raise ValueError(f"has no goals: its observation must be a Dict with Boxes {ACHIEVED} and {DESIRED}")
        for name in ("compute_reward", "compute_terminated"):
            if not (env.has_wrapper_attr(name) and callable(env.get_wrapper_attr(name))):
                raise ValueError(f"has no method {name}(achieved_goal, desired_goal, info) for other goals")
        ends = dict(zip(parts, np.cumsum([flatdim(part) for part in parts.values()]).tolist(), strict=True))
        size = flatdim(achieved)
        self.achieved = slice(ends[ACHIEVED] - size, ends[ACHIEVED])
        self.desired = slice(ends[DESIRED] - size, ends[DESIRED])
        self._shape, self._dtype = achieved.shape, achieved.dtype
        self._env = env  # which would otherwise be closed with its last reference
        self._reward, self._terminated = (
            _for_many(env.get_wrapper_attr(name), achieved) for name in ("compute_reward", "compute_terminated")
        )

    def outcome(self, achieved: Tensor, desired: Tensor) -> tuple[Tensor, Tensor]:
        """Returns reward [n, 1], float32, and whether the episode terminates [n, 1] for goals [n, g]."""
        goals = [goal.cpu().numpy().astype(self._dtype).reshape(-1, *self._shape) for goal in (achieved, desired)]
        reward, terminated = self._reward(*goals), self._terminated(*goals)
        return (
            torch.from_numpy(reward.astype(np.float32)).unsqueeze(-1).to(achieved.device),
            torch.from_numpy(terminated.astype(bool)).unsqueeze(-1).to(achieved.device),
        )


def _for_many(function: GoalFunction, space: Box) -> Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]:
    """Returns the function for many goals [n, ...] at once, as [n].

    Gymnasium requires it for single goals alone, and some environments reduce over all numbers that they receive. It is
    therefore called once for all goals only if this returns for some trial goals what single calls return.
    """

    def single(achieved: NDArray[Any], desired: NDArray[Any]) -> NDArray[Any]:
        found = [function(one, goal, {}) for one, goal in zip(achieved, desired, strict=True)]
        return np.array([np.asarray(value).item() for value in found])

    def together(achieved: NDArray[Any], desired: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(function(achieved, desired, {}))

    many = flatdim(space) + 2  # no dimension of a goal is as large
    numbers = np.linspace(-1, 1, many * flatdim(space)).reshape(many, *space.shape)
    achieved = np.clip(numbers, space.low, space.high).astype(space.dtype)
    desired = np.concatenate([achieved[:2], achieved[:-2]])  # the first two are reached
    expected = single(achieved, desired)
    try:
        found = together(achieved, desired)
    except Exception:  # an environment's reward may be written for one goal, and fail on several in any way
        return single
    return together if found.shape == expected.shape and np.allclose(found, expected) else single
