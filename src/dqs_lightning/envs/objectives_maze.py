"""A maze with a reward vector: nearer goals take less time, farther ones are worth more."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchrl.data import Unbounded

from dqs_lightning.envs.maze import Maze, MazeBatch
from dqs_lightning.envs.objectives import Objectives, check_weights
from dqs_lightning.ranges import Count, Finite, Fraction, NonNegative, Positive, checked

SHAFTS = tuple((x, -1.0, x, 0.6) for x in (-0.6, -0.2, 0.2, 0.6))
TREASURES = ((-0.8, 0.0), (-0.4, -0.45), (0.0, -0.6), (0.4, -0.7), (0.8, -0.8))
"""Goals in the five shafts between these walls."""
VALUES = ((0.2, 0.0), (1.0, 0.0), (1.4, 0.0), (1.65, 0.0), (1.8, 0.0))
"""Their reward vectors."""


class ObjectivesMaze(Objectives, Maze):
    """A maze whose reward is a vector: that of the goal on arrival, and one that each step gives.

    The observation is the position, followed by the weights of the objectives. The defaults are `maze-treasures`, in
    which the first objective is the value of a treasure and the second is minus a cost of each step: from the corner at
    the upper left, five shafts lead down to treasures, which are two to six steps away, each worth more than the one
    before it.

    Args:
        weights: of the objectives, each >= 0, with the sum 1. None: drawn uniformly for each episode.
        walls: segments (x1, y1, x2, y2) within the box, which is itself walled.
        goals: centers (x, y) within the box, one or more.
        goal_rewards: reward vector of each goal.
        step_reward: reward vector of each step, that on which a goal is reached included.
        goal_radius: > 0.
        start: where episodes begin, within the box.
        start_noise: half the side of the square around it from which the start is drawn; >= 0.
        step: longest move in each dimension; > 0.
        horizon: steps until an episode is truncated; >= 1.
        label: name of the layout, for run directories.
    """

    @checked
    def __init__(
        self,
        weights: Sequence[NonNegative] | None = None,
        walls: Sequence[Sequence[float]] = SHAFTS,
        goals: Sequence[Sequence[float]] = TREASURES,
        goal_rewards: Sequence[Sequence[Finite]] = VALUES,
        step_reward: Sequence[Finite] = (0.0, -0.2),
        goal_radius: Positive = 0.15,
        start: Sequence[float] = (-0.8, 0.8),
        start_noise: Fraction = 0.02,
        step: Positive = 0.5,
        horizon: Count = 30,
        label: str = "maze-treasures",
    ) -> None:
        super().__init__(walls, goals, None, goal_radius, start, start_noise, step, horizon, label)
        if len(goal_rewards) != len(goals) or {len(reward) for reward in goal_rewards} != {len(step_reward)}:
            raise ValueError(
                f"goal_rewards={list(map(list, goal_rewards))}: must be one for each of {len(goals)} goals, each of "
                f"{len(step_reward)} numbers, as step_reward"
            )
        check_weights(weights, len(step_reward))
        self.weights, self.goal_rewards, self.step_reward = weights, goal_rewards, step_reward

    @property
    def objectives(self) -> int:
        return len(self.step_reward)

    def make_vector(self, num_envs: int, seed: int) -> "ObjectivesMazeBatch":
        return ObjectivesMazeBatch(self, num_envs, seed)


class ObjectivesMazeBatch(MazeBatch):
    """An `ObjectivesMaze` whose reward is the vector, and whose observation is the position alone."""

    def __init__(self, maze: ObjectivesMaze, num_envs: int, seed: int) -> None:
        super().__init__(maze, num_envs, seed)
        self.reward_spec = Unbounded(shape=(num_envs, maze.objectives))
        none = [0.0] * maze.objectives  # for index -1: no goal
        self._vectors = torch.tensor([*map(list, maze.goal_rewards), none], dtype=torch.float64)
        self._vectors += torch.tensor(maze.step_reward, dtype=torch.float64)

    def move(self, position: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        position, _, ended = super().move(position, action)
        return position, self._vectors[self._maze.goal_of(position).squeeze(-1)], ended
