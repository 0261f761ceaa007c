"""Mazes of straight walls with several goals."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dqs_lightning.envs.navigation import Navigation, PlaneBatch, Points, check_points
from dqs_lightning.ranges import Count, Fraction, Positive, checked

ROOM, DOOR = 0.4, 0.15
"""Half the side of the inner room, and half the width of the door in the middle of each side."""
CORNERS = tuple((float(x), float(y)) for x in (-1, 1) for y in (-1, 1))
FOUR_DOORS = tuple(
    wall
    for x, y in CORNERS
    for wall in ((x * ROOM, y * ROOM, x * DOOR, y * ROOM), (x * ROOM, y * ROOM, x * ROOM, y * DOOR))
)
FOUR_GOALS = tuple((0.8 * x, 0.8 * y) for x, y in CORNERS)
GAP = 1e-4
"""Distance from the wall at which a blocked move ends."""


class Maze(Navigation):
    """A point in the box [-1, 1]^2 that moves by step x action, and whose episode ends at a goal.

    The observation is the position. The reward is the goal's value on arrival and 0 before. A move that meets an inner
    wall ends there. The defaults are `maze-four-goals`: a room with a door in the middle of each side, and outside it
    a goal in each corner, all equally far, each by two paths.

    Args:
        walls: segments (x1, y1, x2, y2) within the box, which is itself walled.
        goals: centers (x, y) within the box, one or more.
        rewards: of each goal; None: 1 each.
        goal_radius: > 0.
        start: where episodes begin, within the box.
        start_noise: half the side of the square around it from which the start is drawn; >= 0.
        step: longest move in each dimension; > 0.
        horizon: steps until an episode is truncated; >= 1.
        label: name of the layout, for run directories.
    """

    extent = (-1.0, 1.0, -1.0, 1.0)

    @checked
    def __init__(
        self,
        walls: Sequence[Sequence[float]] = FOUR_DOORS,
        goals: Sequence[Sequence[float]] = FOUR_GOALS,
        rewards: Sequence[float] | None = None,
        goal_radius: Positive = 0.2,
        start: Sequence[float] = (0.0, 0.0),
        start_noise: Fraction = 0.05,
        step: Positive = 0.3,
        horizon: Count = 20,
        label: str = "maze-four-goals",
    ) -> None:
        super().__init__(action_repeat=1)
        for name, points, width in (("walls", walls, 4), ("goals", goals, 2), ("start", [start], 2)):
            check_points(points, width, name)
        if not goals:
            raise ValueError("goals=[]: must be one or more")
        if rewards is not None and not (len(rewards) == len(goals) and all(map(math.isfinite, rewards))):
            raise ValueError(f"rewards={list(rewards)}: must be one finite number for each of {len(goals)} goals")
        self.walls, self.goals, self.rewards = walls, goals, rewards
        self.goal_radius, self.start, self.start_noise = goal_radius, start, start_noise
        self.step, self.horizon, self.label = step, horizon, label
        self.obstacles = _pieces(walls)

    def make(self, num_envs: int, seed: int) -> "MazeBatch":
        return MazeBatch(self, num_envs, seed)

    def blocked(self, start: Tensor, end: Tensor) -> Tensor:
        """Returns where straight moves from start to end [n, 2] end: at `end` within the box, or just before a wall."""
        end = end.clamp(-1, 1)
        if not len(self.walls):
            return end
        first, second = start.new_tensor(self.walls).reshape(-1, 2, 2).unbind(1)
        along, wall = (end - start).unsqueeze(1), second - first
        to_first = first - start.unsqueeze(1)
        area = _cross(along, wall)  # 0 for parallel ones, which never meet: the quotients are then not finite
        share, place = _cross(to_first, wall) / area, _cross(to_first, along) / area
        meets = (share >= 0) & (share <= 1) & (place >= -1e-9) & (place <= 1 + 1e-9)
        # The end is then GAP away from the wall at any angle.
        back = GAP * wall.norm(dim=-1) / area.abs()
        share = torch.where(meets, (share - back).clamp_min(0), 1.0).amin(-1, keepdim=True)
        return start + share * (end - start)


class MazeBatch(PlaneBatch):
    """See `Maze`."""

    def __init__(self, maze: Maze, num_envs: int, seed: int) -> None:
        super().__init__(maze, num_envs, seed, maze.horizon)
        self._maze = maze
        rewards = maze.rewards if maze.rewards is not None else [1.0] * len(maze.goals)
        self._rewards = torch.tensor([*rewards, 0.0], dtype=torch.float64)  # the last for index -1: no goal

    def begin(self, uniform: Tensor) -> Tensor:
        center = uniform.new_tensor(self._maze.start)
        return (center + self._maze.start_noise * (2 * uniform - 1)).clamp(-1, 1)

    def move(self, position: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        position = self._maze.blocked(position, position + self._maze.step * action)
        goal = self._maze.goal_of(position)
        return position, self._rewards[goal], goal >= 0


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _pieces(walls: Points) -> Points:
    """A point of each connected piece of walls that does not touch the box."""
    ends = [{(w[0], w[1]), (w[2], w[3])} for w in walls]
    pieces: list[set[tuple[float, float]]] = []
    for points in ends:
        joined = [piece for piece in pieces if piece & points]
        pieces = [piece for piece in pieces if not piece & points] + [points.union(*joined)]
    return [min(piece) for piece in pieces if all(abs(c) < 1 for point in piece for c in point)]
