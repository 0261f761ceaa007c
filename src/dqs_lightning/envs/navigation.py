"""A point on a plane with several goals: what such environments describe, and one batched in torch alone."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Unbounded

from dqs_lightning.envs.base import Batch, Environment
from dqs_lightning.envs.interface import Interface, Part

Points = Sequence[Sequence[float]]


class Navigation(Environment):
    """A point that moves on a plane towards one of several goals.

    Beside the observation, its environments write `position` [n, 2] and `goal` [n, 1], int64: the index of the goal
    at which the member is, or -1. The goal of an episode is the one at which it ends.

    Attributes:
        goals: centers (x, y).
        goal_radius: a position within this distance of a center is at that goal.
        extent: (x low, x high, y low, y high) of the plane.
        walls: segments (x1, y1, x2, y2) that cannot be crossed, those around the plane left out.
        blocks: solid squares (x low, x high, y low, y high).
        obstacles: a point (x, y) of each piece of wall that paths can go around, by which paths are distinguished.
        label: name, for run directories.
    """

    goals: Points
    goal_radius: float
    extent: tuple[float, float, float, float]
    walls: Points = ()
    blocks: Points = ()
    obstacles: Points = ()
    label: str

    @property
    def name(self) -> str:
        return self.label

    def interface(self) -> Interface:
        return Interface((Part("position", 2),))

    def goal_of(self, position: Tensor) -> Tensor:
        """The nearest goal within reach of positions [n, 2]: int64 [n, 1], -1 where there is none."""
        # Not by matrix products, whose rounding depends on how many positions there are.
        apart = torch.cdist(position, position.new_tensor(self.goals), compute_mode="donot_use_mm_for_euclid_dist")
        distance, nearest = apart.min(-1, keepdim=True)
        return torch.where(distance <= self.goal_radius, nearest, -1)

    def samples(self, num: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Samples [num, 2] of the distribution at which episodes should end; None where there is none."""
        return None


def check_points(points: Points, width: int, name: str) -> None:
    """Raises a ValueError unless the points of an argument are lists of `width` numbers from -1 to 1."""
    if any(len(point) != width or not all(-1 <= x <= 1 for x in point) for point in points):
        raise ValueError(f"{name}={points}: must be lists of {width} numbers from -1 to 1")


class NavigationBatch(Batch):
    """Base class of the environments of a `Navigation`, with a random stream for each member.

    Subclass it and write `_place`, `_state` and `_step`.

    Args:
        navigation: defines the goals.
        num_envs: batch size.
        seed: of the first member's stream; that of member i is seed + i.
        unit: by which each dimension of the state is divided for the observation.
    """

    def __init__(self, navigation: Navigation, num_envs: int, seed: int, unit: Sequence[float]) -> None:
        goal = Bounded(-1, len(navigation.goals) - 1, shape=(num_envs, 1), dtype=torch.int64)
        super().__init__(num_envs, len(unit), 2, position=Unbounded(shape=(num_envs, 2)), goal=goal)
        self.navigation, self._unit = navigation, torch.tensor(unit, dtype=torch.float64)
        self._streams = [torch.Generator().manual_seed(seed + index) for index in range(num_envs)]

    @abstractmethod
    def _place(self, members: list[int], uniform: Tensor) -> None:
        """Starts episodes of k members, from uniform draws [k, 2] in [0, 1)."""

    @abstractmethod
    def _state(self) -> Tensor:
        """Returns the state of all members, float64: [n, 2], or more columns after the position."""

    def _begin(self, members: list[int]) -> None:
        if members:
            draws = [torch.rand(2, generator=self._streams[index], dtype=torch.float64) for index in members]
            self._place(members, torch.stack(draws))

    def _observed(self) -> dict[str, Tensor]:
        state = self._state()
        position = state[:, :2]
        goal = self.navigation.goal_of(position)
        return {"observation": (state / self._unit).float(), "position": position.float(), "goal": goal}

    def _set_seed(self, seed: int | None) -> None:
        for index, stream in enumerate(self._streams):
            if seed is None:
                stream.seed()
            else:
                stream.manual_seed(seed + index)

    def snapshot(self) -> dict[str, Any]:
        """Everything that the next steps depend on, as tensors and plain values."""
        return {"streams": torch.stack([stream.get_state() for stream in self._streams])}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a snapshot: the next `reset` returns to it, in mid-episode, instead of starting anew."""
        for stream, saved in zip(self._streams, state["streams"], strict=True):
            stream.set_state(saved.clone())  # a view into the stack would crash torch
        self._restored = True


class PlaneBatch(NavigationBatch):
    """`num_envs` points, stepped together by tensor operations. The observation is the position over `scale`.

    Subclass it and write `begin` and `move`. Further arguments are those of `NavigationBatch`.

    Args:
        horizon: steps until an episode is truncated.
        scale: of the observation.
    """

    def __init__(self, navigation: Navigation, num_envs: int, seed: int, horizon: int, scale: float = 1.0) -> None:
        super().__init__(navigation, num_envs, seed, unit=(scale, scale))
        self.horizon = horizon
        self._position = torch.zeros(num_envs, 2, dtype=torch.float64)
        self._steps = torch.zeros(num_envs, 1, dtype=torch.int64)

    @abstractmethod
    def begin(self, uniform: Tensor) -> Tensor:
        """Returns the starts of episodes [k, 2], from uniform draws [k, 2] in [0, 1)."""

    @abstractmethod
    def move(self, position: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The next position [n, 2], the reward [n, 1] and whether it ends there [n, 1]; float64, float64, bool."""

    def _place(self, members: list[int], uniform: Tensor) -> None:
        self._position[members], self._steps[members] = self.begin(uniform), 0

    def _state(self) -> Tensor:
        return self._position

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict["action"].double().clamp(-1, 1)
        self._position, reward, terminated = self.move(self._position, action)
        self._steps += 1
        return self._transition(terminated, (self._steps >= self.horizon) & ~terminated, reward=reward.float())

    def snapshot(self) -> dict[str, Any]:
        return {**super().snapshot(), "position": self._position.clone(), "steps": self._steps.clone()}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._position, self._steps = state["position"].clone(), state["steps"].clone()
