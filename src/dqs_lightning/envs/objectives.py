"""Environments whose reward is a vector: it is weighted by numbers that each episode draws and that are observed."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torchrl.data import Composite, Unbounded
from torchrl.envs import EnvBase

from dqs_lightning.envs.base import Environment, chosen
from dqs_lightning.envs.goals import Goals
from dqs_lightning.envs.interface import Interface, Part
from dqs_lightning.envs.watched import adopt_specs, specs_of
from dqs_lightning.objectives import OBJECTIVES, uniform_weights

STREAM = 1_000_000_007
"""Added to a member's seed for the stream of its weights, which must not be that of the environment."""


class Objectives(Environment):
    """Base class of environments with m objectives, for any weights w: m numbers >= 0 with the sum 1.

    The observation is that of the environment itself, followed by w. The reward is w . r; the vector r is written
    beside it as `objectives` [num_envs, m]. The weights are constant within an episode.

    Subclass it, before another environment, set `weights`, and write `objectives` and `make_vector`.

    Attributes:
        weights: w of all episodes; None: drawn uniformly from the simplex for each episode.
    """

    weights: Sequence[float] | None

    @property
    @abstractmethod
    def objectives(self) -> int:
        """The number of objectives, m; >= 2."""

    @abstractmethod
    def make_vector(self, num_envs: int, seed: int) -> EnvBase:
        """An environment as `make` returns it, but with a `reward` [num_envs, m], the vector, and without weights."""

    def make(self, num_envs: int, seed: int) -> "WeightedBatch":
        base = self.make_vector(num_envs, seed)
        try:
            return WeightedBatch(base, self.weights, seed)
        except BaseException:
            base.close(raise_if_closed=False)
            raise

    def hindsight_goals(self) -> Goals:
        return Environment.hindsight_goals(self)  # refused: the goal functions of Gymnasium return one number

    def interface(self) -> Interface:
        found = super().interface()
        return replace(found, observation=(*found.observation, Part("weights", self.objectives)))


def check_weights(weights: Sequence[float] | None, objectives: int) -> None:
    """Checks that weights are on the simplex.

    Raises:
        ValueError: naming them.
    """
    if weights is None:
        return
    valid = len(weights) == objectives and all(weight >= 0 for weight in weights)
    if not valid or not math.isclose(sum(weights), 1, abs_tol=1e-6):
        raise ValueError(f"weights={list(weights)}: must be {objectives} numbers >= 0 with the sum 1")


class WeightedBatch(EnvBase):
    """A batched environment with a reward vector, whose episodes have weights (see `Objectives`).

    Member i draws its weights from a stream of its own, which depends on seed + i.

    Args:
        base: whose `reward` is the vector [num_envs, m].
        weights: w of all episodes; None: drawn for each episode.
        seed: of the first member.
    """

    batch_locked = True

    def __init__(self, base: EnvBase, weights: Sequence[float] | None, seed: int) -> None:
        super().__init__(device=base.device, batch_size=base.batch_size)
        specs, num_envs = specs_of(base), base.batch_size[0]
        vector, observation = specs["full_reward_spec"]["reward"], specs["full_observation_spec"]["observation"]
        self._objectives = vector.shape[-1]
        check_weights(weights, self._objectives)
        seen = Unbounded(shape=(num_envs, observation.shape[-1] + self._objectives), device=base.device)
        specs["full_observation_spec"]["observation"] = seen
        reward = Unbounded(shape=(num_envs, 1), device=base.device)
        specs["full_reward_spec"] = Composite({"reward": reward, OBJECTIVES: vector}, shape=(num_envs,))
        adopt_specs(self, specs)
        self._base, self._fixed = base, weights is not None
        self._weights = torch.tensor(weights or [0.0] * self._objectives).expand(num_envs, -1).clone()
        self._streams = [torch.Generator() for _ in range(num_envs)]
        self._restored = False
        self._seed_streams(seed)

    def _seed_streams(self, seed: int | None) -> None:
        for index, stream in enumerate(self._streams):
            if seed is None:
                stream.seed()
            else:
                stream.manual_seed(seed + index + STREAM)

    def _set_seed(self, seed: int | None) -> None:
        self._base.set_seed(seed)
        self._seed_streams(seed)

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        if not (self._fixed or self._restored):
            for index in chosen(tensordict, len(self._streams)).nonzero().flatten().tolist():
                uniform = torch.rand(self._objectives - 1, generator=self._streams[index])
                self._weights[index] = uniform_weights(uniform)
        self._restored = False
        return self._observed(self._base._reset(tensordict, **kwargs))

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        found = self._observed(self._base._step(tensordict))
        vector = found["reward"]
        return found.set(OBJECTIVES, vector).set("reward", (self._weights * vector).sum(-1, keepdim=True))

    def _observed(self, found: TensorDictBase) -> TensorDictBase:
        """Appends the weights to the observation."""
        return found.set("observation", torch.cat([found["observation"], self._weights], -1))

    def snapshot(self) -> dict[str, Any] | None:
        """Everything that the next steps depend on; None where the environment has no `snapshot`."""
        found = self._base.snapshot() if callable(getattr(type(self._base), "snapshot", None)) else None
        if found is None:
            return None
        streams = torch.stack([stream.get_state() for stream in self._streams])
        return {"environment": found, "weights": self._weights.clone(), "streams": streams}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a snapshot: the next `reset` returns to it, in mid-episode, instead of starting anew."""
        self._base.restore(state["environment"])
        self._weights, self._restored = state["weights"].clone(), True
        for stream, saved in zip(self._streams, state["streams"], strict=True):
            stream.set_state(saved.clone())  # a view into the stack would crash torch

    def render(self, index: int = 0, height: int = 240, width: int = 320) -> np.ndarray:
        """See `Watched.render`; a TypeError where the environment cannot be drawn."""
        if not callable(getattr(type(self._base), "render", None)):
            raise TypeError(f"{type(self._base).__name__} has no method render(index, height, width)")
        picture: np.ndarray = self._base.render(index, height, width)
        return picture

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close the environment."""
        self.is_closed = True
        self._base.close(raise_if_closed=raise_if_closed)
