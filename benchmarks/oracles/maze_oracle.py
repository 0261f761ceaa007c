"""What exp(Q/T) of the entropy-regularised optimum does in a maze, by dynamic programming on a fine grid.

    python benchmarks/oracles/maze_oracle.py --temperatures 0.01 0.02 0.05 --rewards 1 1 1 1

Prints success and the goals' shares at each temperature: what the Soft backup and an exact sampler would end at.
"""

import argparse

import torch
from torch import Tensor

from dqs_lightning.envs import Maze
from dqs_lightning.evaluation.goal_coverage import entropy_of, goal_shares

CELLS = 100
"""States a side. Their cells have a side of 0.02, so that the inner walls at 0.4 run between them."""
MOVES = 21
"""Actions a side."""


class Oracle:
    """Soft value iteration, V(s) = T log E_U[exp(Q(s, a) / T)], Q(s, a) = r + gamma V(s')."""

    def __init__(self, maze: Maze, temperature: float, discount: float, sweeps: int = 80) -> None:
        self.maze, self.temperature = maze, temperature
        side = (torch.arange(CELLS, dtype=torch.float64) + 0.5) * 2 / CELLS - 1
        states = torch.cartesian_prod(side, side)
        moves = (torch.arange(MOVES, dtype=torch.float64) + 0.5) * 2 / MOVES - 1
        self.actions = torch.cartesian_prod(moves, moves)
        start = states.repeat_interleave(len(self.actions), 0)
        env = maze.make(1, 0)
        position, reward, ended = env.move(start, self.actions.repeat(len(states), 1))
        following, reward, alive = self.cell(position), reward.squeeze(-1).float(), ~ended.squeeze(-1)
        value = torch.zeros(len(states))
        for _ in range(sweeps):
            q = (reward + discount * alive * value[following]).reshape(len(states), -1)
            value = temperature * (torch.logsumexp(q / temperature, 1) - torch.tensor(float(len(self.actions))).log())
        self.q_values, self.value = q, value

    def cell(self, position: Tensor) -> Tensor:
        index = ((position + 1) * CELLS / 2).long().clamp(0, CELLS - 1)
        return index[:, 0] * CELLS + index[:, 1]

    def act(self, observation: Tensor) -> Tensor:
        """Actions [n, 2] at positions [n, 2]."""
        law = torch.softmax(self.q_values[self.cell(observation)] / self.temperature, -1)
        return self.actions[torch.multinomial(law, 1).squeeze(-1)].float()


def main() -> None:
    from dqs_lightning.evaluation.goal_coverage import roll_out

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--temperatures", nargs="+", type=float, default=[0.01, 0.02, 0.05, 0.1])
    parser.add_argument("--rewards", nargs="+", type=float, default=[1.0, 1.0, 1.0, 1.0])
    parser.add_argument("--discount", type=float, default=0.85)
    parser.add_argument("--episodes", type=int, default=4000)
    options = parser.parse_args()
    torch.manual_seed(0)
    maze = Maze(rewards=options.rewards)
    for temperature in options.temperatures:
        oracle = Oracle(maze, temperature, options.discount)
        rollouts = roll_out(maze.make(options.episodes, 0), oracle.act)
        shares = goal_shares(rollouts.goal, len(maze.goals))
        start = float(oracle.value[oracle.cell(torch.tensor([[0.0, 0.0]]))])
        print(
            f"T={temperature} success={float(shares.sum()):.3f} shares={[round(s, 3) for s in shares.tolist()]} "
            f"entropy={entropy_of(shares):.3f} V(start)={start:.3f}"
        )


if __name__ == "__main__":
    main()
