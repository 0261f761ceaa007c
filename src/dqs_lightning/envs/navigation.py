"""A point on a plane with several goals: what such environments tell of themselves, and one batched in torch alone."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from dqs_lightning.envs.base import Environment

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
    """

    goals: Points
    goal_radius: float
    extent: tuple[float, float, float, float]
    walls: Points = ()
    blocks: Points = ()
    obstacles: Points = ()

    def goal_of(self, position: Tensor) -> Tensor:
        """The nearest goal within reach of positions [n, 2]: int64 [n, 1], -1 where there is none."""
        # Not by matrix products, whose rounding depends on how many positions there are.
        apart = torch.cdist(position, position.new_tensor(self.goals), compute_mode="donot_use_mm_for_euclid_dist")
        distance, nearest = apart.min(-1, keepdim=True)
        return torch.where(distance <= self.goal_radius, nearest, -1)

    def samples(self, num: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Samples [num, 2] of the distribution at which episodes should end; None where there is none."""
        return None


class NavigationBatch(EnvBase):
    """Base class of the environments of a `Navigation`: their specs, and a random stream for each member.

    Args:
        navigation: says where goals are.
        num_envs: batch size.
        seed: of the first member's stream; that of member i is seed + i.
        observation_dim: dimension of the observation.
    """

    batch_locked = True

    def __init__(self, navigation: Navigation, num_envs: int, seed: int, observation_dim: int) -> None:
        super().__init__(device="cpu", batch_size=[num_envs])
        self.navigation = navigation
        self._streams = [torch.Generator().manual_seed(seed + index) for index in range(num_envs)]
        self._restored = False
        flag = Categorical(2, shape=(num_envs, 1), dtype=torch.bool)
        self.observation_spec = Composite(
            observation=Unbounded(shape=(num_envs, observation_dim)),
            position=Unbounded(shape=(num_envs, 2)),
            goal=Bounded(-1, len(navigation.goals) - 1, shape=(num_envs, 1), dtype=torch.int64),
            shape=(num_envs,),
        )
        self.action_spec = Bounded(-1, 1, shape=(num_envs, 2), dtype=torch.float32)
        self.reward_spec = Unbounded(shape=(num_envs, 1))
        self.full_done_spec = Composite(done=flag, terminated=flag.clone(), truncated=flag.clone(), shape=(num_envs,))

    def _set_seed(self, seed: int | None) -> None:
        for index, stream in enumerate(self._streams):
            if seed is None:
                stream.seed()
            else:
                stream.manual_seed(seed + index)

    def _saved_streams(self) -> Tensor:
        return torch.stack([stream.get_state() for stream in self._streams])

    def _restore_streams(self, saved: Tensor) -> None:
        for stream, state in zip(self._streams, saved, strict=True):
            stream.set_state(state.clone())  # a view into the stack would crash torch


class PlaneBatch(NavigationBatch):
    """`num_envs` points, stepped together by tensor operations. The observation is the position over `scale`.

    Subclass it and write `begin` and `move`.

    Args:
        navigation: says where goals are.
        num_envs: batch size.
        seed: see `NavigationBatch`.
        horizon: steps until an episode is cut.
        scale: of the observation.
    """

    def __init__(self, navigation: Navigation, num_envs: int, seed: int, horizon: int, scale: float = 1.0) -> None:
        super().__init__(navigation, num_envs, seed, observation_dim=2)
        self.horizon, self.scale = horizon, scale
        self._position = torch.zeros(num_envs, 2, dtype=torch.float64)
        self._steps = torch.zeros(num_envs, 1, dtype=torch.int64)

    @abstractmethod
    def begin(self, uniform: Tensor) -> Tensor:
        """Returns the starts of episodes [k, 2], from uniform draws [k, 2] in [0, 1)."""

    @abstractmethod
    def move(self, position: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The next position [n, 2], the reward [n, 1] and whether it ends there [n, 1]; float64, float64, bool."""

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        chosen = torch.ones(len(self._streams), dtype=torch.bool)
        if tensordict is not None and "_reset" in tensordict:
            chosen = tensordict["_reset"].reshape(-1)
        if self._restored:
            self._restored = False
        elif chosen.any():
            streams = (self._streams[index] for index in chosen.nonzero().flatten().tolist())
            uniform = torch.stack([torch.rand(2, generator=stream, dtype=torch.float64) for stream in streams])
            self._position[chosen] = self.begin(uniform)
            self._steps[chosen] = 0
        flags = torch.zeros(len(self._streams), 1, dtype=torch.bool)
        return self._tensordict(done=flags, terminated=flags.clone(), truncated=flags.clone())

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict["action"].double().clamp(-1, 1)
        self._position, reward, terminated = self.move(self._position, action)
        self._steps += 1
        truncated = (self._steps >= self.horizon) & ~terminated
        return self._tensordict(
            reward=reward.float(), done=terminated | truncated, terminated=terminated, truncated=truncated
        )

    def _tensordict(self, **entries: Tensor) -> TensorDictBase:
        entries["observation"] = (self._position / self.scale).float()
        entries["position"] = self._position.float()
        entries["goal"] = self.navigation.goal_of(self._position)
        return TensorDict(entries, batch_size=self.batch_size)

    def snapshot(self) -> dict[str, Any]:
        """Everything that the next steps depend on."""
        streams = self._saved_streams()
        return {"position": self._position.clone(), "steps": self._steps.clone(), "streams": streams}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a snapshot: the next `reset` returns to it, in mid-episode, instead of starting anew."""
        self._position, self._steps = state["position"].clone(), state["steps"].clone()
        self._restore_streams(state["streams"])
        self._restored = True
