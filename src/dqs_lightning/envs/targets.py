"""A point mass without inertia that is rewarded near targets."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dqs_lightning.envs.navigation import Navigation, PlaneBatch, check_points
from dqs_lightning.ranges import Count, Fraction, Positive, checked


class Targets(Navigation):
    """A point in the box [-1, 1]^2 that moves by step x action and is rewarded near targets.

    The observation is the position. The reward of a step is the sum over the targets of
    weight x exp(-|position - target|^2 / (2 width^2)), at the position that it reaches. Episodes never terminate; they
    are truncated after `horizon` steps.

    Args:
        targets: centers (x, y) within the box, one or more.
        weights: of each target; None: 1 each.
        width: of a target's reward; > 0.
        start: where episodes begin, within the box.
        start_noise: half the side of the square around it from which the start is drawn; in [0, 1].
        step: longest move in each dimension; > 0.
        horizon: steps until an episode is truncated; >= 1.
        label: name of the layout, for run directories.
    """

    extent = (-1.0, 1.0, -1.0, 1.0)

    @checked
    def __init__(
        self,
        targets: Sequence[Sequence[float]] = ((0.6, 0.6),),
        weights: Sequence[float] | None = None,
        width: Positive = 0.3,
        start: Sequence[float] = (0.0, 0.0),
        start_noise: Fraction = 1.0,
        step: Positive = 0.2,
        horizon: Count = 20,
        label: str = "targets",
    ) -> None:
        super().__init__(action_repeat=1)
        for name, points in (("targets", targets), ("start", [start])):
            check_points(points, 2, name)
        if not targets:
            raise ValueError("targets=[]: must be one or more")
        if weights is not None and not (len(weights) == len(targets) and all(map(math.isfinite, weights))):
            raise ValueError(f"weights={list(weights)}: must be one finite number for each of {len(targets)} targets")
        self.targets, self.weights, self.width = targets, weights, width
        self.start, self.start_noise, self.step = start, start_noise, step
        self.horizon, self.label = horizon, label
        self.goals, self.goal_radius = targets, width

    def make(self, num_envs: int, seed: int) -> "TargetsBatch":
        return TargetsBatch(self, num_envs, seed)

    def reward(self, position: Tensor) -> Tensor:
        """Returns the reward at positions [n, 2]: [n, 1]."""
        apart = (position.unsqueeze(1) - position.new_tensor(self.targets)).square().sum(-1)
        weights = position.new_tensor(self.weights or [1.0] * len(self.targets))
        return (weights * torch.exp(-apart / (2 * self.width**2))).sum(-1, keepdim=True)


class TargetsBatch(PlaneBatch):
    """See `Targets`."""

    def __init__(self, targets: Targets, num_envs: int, seed: int) -> None:
        super().__init__(targets, num_envs, seed, targets.horizon)
        self._targets = targets

    def begin(self, uniform: Tensor) -> Tensor:
        center = uniform.new_tensor(self._targets.start)
        return (center + self._targets.start_noise * (2 * uniform - 1)).clamp(-1, 1)

    def move(self, position: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        position = (position + self._targets.step * action).clamp(-1, 1)
        reward = self._targets.reward(position)
        return position, reward, torch.zeros_like(reward, dtype=torch.bool)
