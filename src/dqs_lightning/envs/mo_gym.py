"""Environments of mo-gymnasium, Gymnasium environments whose reward is a vector."""

import importlib
import importlib.util
from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import cached_property
from typing import Any, ClassVar

import gymnasium
import numpy as np
from numpy.typing import NDArray
from torchrl.data import Unbounded

from dqs_lightning.envs.base import constructing
from dqs_lightning.envs.gym import Gym, GymBatch
from dqs_lightning.envs.objectives import Objectives, check_weights
from dqs_lightning.envs.spaces import check_finite
from dqs_lightning.ranges import Count, NonNegative, checked


class MOGym(Objectives, Gym):
    """An environment of mo-gymnasium with a bounded continuous action; see `Gym` for its spaces.

    Args:
        id: the registered id, such as mo-halfcheetah-v5.
        weights: of the objectives, each >= 0, with the sum 1. None: drawn uniformly for each episode.
        action_repeat: frames for each action; >= 1. Reward vectors are summed over them.
        kwargs: further arguments of `gymnasium.make`.
        action_low: see `Gym`.
        action_high: see `Gym`.

    Raises:
        ValueError: when mo-gymnasium is not installed, or Gymnasium knows no such id. `make` raises it as that of `Gym`
            does, and for an environment whose reward is one number.
    """

    defaults: ClassVar[dict[str, Any]] = {"disable_env_checker": True}  # it requires one number as the reward

    @checked
    def __init__(
        self,
        id: str = "mo-mountaincarcontinuous-v0",
        weights: Sequence[NonNegative] | None = None,
        action_repeat: Count = 1,
        kwargs: dict[str, Any] | None = None,
        action_low: float | list[float] | None = None,
        action_high: float | list[float] | None = None,
    ) -> None:
        check_finite(action_low=action_low, action_high=action_high)
        if importlib.util.find_spec("mo_gymnasium") is None:
            raise ValueError('MOGym needs mo-gymnasium: pip install "dqs-lightning[objectives]"')
        importlib.import_module("mo_gymnasium")  # which registers its environments

        super().__init__(id, action_repeat, kwargs, action_low, action_high)
        if weights is not None:
            check_weights(weights, len(weights))
        self.weights = weights

    @cached_property
    def objectives(self) -> int:
        with constructing(f"id={self.id}"), closing(self._make_one()) as env:
            return objectives_of(env)

    def make_vector(self, num_envs: int, seed: int) -> "MOGymBatch":
        with constructing(f"id={self.id}"), ExitStack() as opened:
            made = [opened.enter_context(closing(self._make_one())) for _ in range(num_envs)]
            batch = MOGymBatch(self, made, seed)
            check_weights(self.weights, objectives_of(made[0]))
            opened.pop_all()
        return batch


class MOGymBatch(GymBatch):
    """Copies of one environment of mo-gymnasium, whose reward is the vector; see `GymBatch`."""

    def __init__(self, gym: MOGym, envs: Sequence[gymnasium.Env[Any, Any]], seed: int) -> None:
        super().__init__(gym, envs, seed)
        self._none = np.zeros(objectives_of(envs[0]))
        self.reward_spec = Unbounded(shape=(len(envs), len(self._none)))

    @staticmethod
    def number(reward: Any) -> NDArray[Any]:
        return np.array(reward, np.float64)


def objectives_of(env: gymnasium.Env[Any, Any]) -> int:
    """Returns the size of an environment's reward vector; raises a ValueError where it has none."""
    space = getattr(env.unwrapped, "reward_space", None)
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
        raise ValueError("its reward is one number; must be a vector, as mo-gymnasium's reward_space describes it")
    return int(space.shape[0])
