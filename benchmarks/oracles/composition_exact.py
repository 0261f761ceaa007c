"""Two tasks on a grid: by dynamic programming, what the sum of their Q functions loses against the optimum."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dqs_lightning.envs import Maze, Navigation, Targets
from dqs_lightning.envs.navigation import PlaneBatch

DISCOUNT = 0.92
CELLS = 101
"""States a side; odd, so that the middle of the room is a state and reflected actions are equally good."""
MOVES = 21
"""Actions a side."""
SWEEPS = 120
TIE = 1e-3
"""Actions whose Q is within this of the largest are equally good."""
TEMPERATURE = 0.01
"""T of the mazes' runs."""
STEP, HORIZON = 0.15, 40
"""Of the mazes. Moves of half the usual length, since Q jumps by a step's worth where a further step is needed, and a
network smooths jumps."""
CORNERS = {"down": (-0.8, -0.8), "shared": (-0.8, 0.8), "up": (0.8, 0.8), "right": (0.8, -0.8)}
POINTS = {"left": (-0.6, 0.0), "right": (0.6, 0.0), "up": (0.6, 0.4)}


def maze(goals: Sequence[tuple[float, float]], rewards: Sequence[float] | None = None, label: str = "sum") -> Maze:
    return Maze(goals=goals, rewards=rewards, step=STEP, horizon=HORIZON, label=label)


TASKS: dict[str, Navigation] = {
    "left-side": maze([CORNERS["down"], CORNERS["shared"]], label="left-side"),
    "upper-side": maze([CORNERS["shared"], CORNERS["up"]], label="upper-side"),
    "diagonal": maze([CORNERS["shared"], CORNERS["right"]], label="diagonal"),
    **{name: Targets([point], label=name) for name, point in POINTS.items()},
}


def sum_of(first: Navigation, second: Navigation) -> Navigation:
    """Returns the task with both rewards, which ends where one of them does."""
    if isinstance(first, Maze) and isinstance(second, Maze):
        goals = list(dict.fromkeys([(x, y) for task in (first, second) for x, y in task.goals]))
        rewards = [float((goal in map(tuple, first.goals)) + (goal in map(tuple, second.goals))) for goal in goals]
        return maze(goals, rewards)
    assert isinstance(first, Targets) and isinstance(second, Targets)
    return Targets([*first.targets, *second.targets])


class Grid:
    """A task on the grid: for each state and action the next state, the reward, and whether the episode goes on."""

    def __init__(self, task: Navigation) -> None:
        side = (torch.arange(CELLS, dtype=torch.float64) + 0.5) * 2 / CELLS - 1
        self.states = torch.cartesian_prod(side, side)
        moves = torch.linspace(-1, 1, MOVES, dtype=torch.float64)
        self.actions = torch.cartesian_prod(moves, moves)
        env = task.make(1, 0)
        assert isinstance(env, PlaneBatch)
        starts = self.states.repeat_interleave(len(self.actions), 0)
        position, reward, ended = env.move(starts, self.actions.repeat(len(self.states), 1))
        shape = len(self.states), len(self.actions)
        self.next, self.reward = cell(position).view(shape), reward.view(shape).float()
        self.on = (~ended).view(shape).float()

    def optimum(self, steps: int = SWEEPS, temperature: float = 0.0) -> Tensor:
        """Returns Q* [states, actions] of so many steps; with a temperature, the entropy-regularised one."""
        value = torch.zeros(len(self.states))
        for _ in range(steps):
            q_value = self.reward + DISCOUNT * self.on * value[self.next]
            value = q_value.amax(1)
            if temperature:
                value = temperature * ((q_value / temperature).logsumexp(1) - math.log(q_value.shape[1]))
        return q_value

    def discounted_sum(self, policy: Tensor, amount: Tensor) -> Tensor:
        """Returns E sum_t gamma^t amount(s_t, a_t) of a policy [states, actions]: [states]."""
        value = torch.zeros(len(self.states))
        for _ in range(SWEEPS):
            value = (policy * (amount + DISCOUNT * self.on * value[self.next])).sum(1)
        return value

    def goal_shares(self, task: Navigation, policy: Tensor, steps: int) -> Tensor:
        """Returns the probability that an episode ends at each goal: [states, goals]."""
        goal = task.goal_of(self.states[self.next.flatten()]).view(self.next.shape)
        share = torch.zeros(len(self.states), len(task.goals))
        for _ in range(steps):
            following = share[self.next] * self.on.unsqueeze(-1)
            for index in range(len(task.goals)):
                following[..., index] += (1 - self.on) * (goal == index)
            share = torch.einsum("sa,sag->sg", policy, following)
        return share


def greedy(q_value: Tensor) -> Tensor:
    """Returns the policy [states, actions] whose best actions are equally likely."""
    best = (q_value >= q_value.amax(1, keepdim=True) - TIE).float()
    return best / best.sum(1, keepdim=True)


def cell(position: Tensor) -> Tensor:
    """Returns the state of positions [n, 2]."""
    index = ((position + 1) * CELLS / 2).long().clamp(0, CELLS - 1)
    return index[:, 0] * CELLS + index[:, 1]


@dataclass
class Exact:
    """Values of all states, [states].

    Attributes:
        optimum: V*.
        optimum_of_episode: V* of the steps of an episode.
        composed: V of the greedy policy of Q1 + Q2.
        bound: on optimum - composed.
        disagreement: V1 + V2 - max_a (Q1 + Q2).
        shares: of the goals, of the greedy policy of Q1 + Q2 in the steps of an episode, [states, goals].
        sampled_shares: the same of exp((Q1 + Q2) / 2 T), with entropy-regularised Q of T = `TEMPERATURE`.
    """

    optimum: Tensor
    optimum_of_episode: Tensor
    composed: Tensor
    bound: Tensor
    disagreement: Tensor
    shares: Tensor
    sampled_shares: Tensor


def exact(first: Navigation, second: Navigation, horizon: int) -> Exact:
    """Computes the values of the greedy policy of Q1 + Q2 by dynamic programming."""
    task = sum_of(first, second)
    grids, total = [Grid(first), Grid(second)], Grid(task)
    q_values = [grid.optimum() for grid in grids]
    values = [q_value.amax(1) for q_value in q_values]
    together = q_values[0] + q_values[1]
    disagreement = values[0] + values[1] - together.amax(1)
    policy = greedy(together)
    # What a task still promises where the sum has ended.
    beyond = sum((1 - total.on) * grid.on * value[grid.next] for grid, value in zip(grids, values, strict=True))
    lost = DISCOUNT * (total.on * disagreement[total.next] + beyond)
    bound = disagreement + total.discounted_sum(policy, lost)
    soft = torch.stack([grid.optimum(temperature=TEMPERATURE) for grid in grids]).sum(0)
    sampled = torch.softmax(soft / (2 * TEMPERATURE), 1)
    shares = (total.goal_shares(task, policy, horizon) for policy in (policy, sampled))
    optima = total.optimum().amax(1), total.optimum(horizon).amax(1)
    return Exact(*optima, total.discounted_sum(policy, total.reward), bound, disagreement, *shares)
