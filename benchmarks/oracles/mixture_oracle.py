"""What the optima of the two backups reach in the mixture navigation: no learning, dynamic programming on a fine grid.

    python benchmarks/oracles/mixture_oracle.py --out benchmarks/results/mixture_oracle.md

`Soft` is the entropy-regularised optimum, V = T log mean_a exp(Q/T); `ExpectedQ` is the fixed point of the paper's
backup, V = E[Q] under exp(Q/T). For each: the squared MMD between the ends of 2000 episodes and 2000 samples of the
mixture, the share of ends within a mode's radius, and the modes found. Values are interpolated between cells of one
unit; directions are 24. The last line holds name=value pairs.
"""

import argparse
import math
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dqs_lightning.envs import MixtureNavigation
from dqs_lightning.envs.mixture import HALF_SIDE, mmd

CELLS, DIRECTIONS, EPISODES = 101, 24, 2000
BACKUPS = ("Soft", "ExpectedQ")


class Oracle:
    """The optimum of one backup at one temperature."""

    def __init__(self, mixture: MixtureNavigation, discount: float, temperature: float, backup: str) -> None:
        self.mixture, self.discount, self.temperature = mixture, discount, temperature
        angle = torch.arange(DIRECTIONS) * 2 * math.pi / DIRECTIONS
        self.moves = mixture.step * torch.stack([angle.cos(), angle.sin()], -1)
        line = torch.linspace(-HALF_SIDE, HALF_SIDE, CELLS)
        cells = torch.cartesian_prod(line, line)
        reward, where, weight = self._ahead(cells)
        self.value = torch.zeros(CELLS**2)
        for _ in range(int(5 / (1 - discount))):
            q_value = reward + discount * (self.value[where] * weight).sum(-1)
            if backup == "Soft":
                soft = torch.logsumexp(q_value / temperature, -1) - math.log(DIRECTIONS)
                self.value = temperature * soft
            else:
                self.value = (torch.softmax(q_value / temperature, -1) * q_value).sum(-1)

    def _ahead(self, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For each direction from positions [..., 2]: the reward, and the four cells around with their weights."""
        following = (position.unsqueeze(-2) + self.moves).clamp(-HALF_SIDE, HALF_SIDE)
        reward = self.mixture.reward_scale * self.mixture.log_density(following)
        at = ((following + HALF_SIDE) / (2 * HALF_SIDE) * (CELLS - 1)).clamp(0, CELLS - 1 - 1e-4)
        low = at.floor().long()
        x, y = (at - low).unbind(-1)
        corner = low[..., 0] * CELLS + low[..., 1]
        where = torch.stack([corner, corner + CELLS, corner + 1, corner + CELLS + 1], -1)
        return reward, where, torch.stack([(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y], -1)

    def ends(self, episodes: int) -> Tensor:
        """Where episodes of the policy exp(Q/T) end, [episodes, 2]."""
        uniform = HALF_SIDE * (2 * torch.rand(episodes, 2) - 1)
        position = uniform if self.mixture.start == "uniform" else torch.zeros_like(uniform)
        for _ in range(self.mixture.horizon):
            reward, where, weight = self._ahead(position)
            q_value = reward + self.discount * (self.value[where] * weight).sum(-1)
            chosen = torch.distributions.Categorical(logits=q_value / self.temperature).sample()
            position = (position + self.moves[chosen]).clamp(-HALF_SIDE, HALF_SIDE)
        return position


def measure(oracle: Oracle) -> tuple[float, float, int]:
    """MMD, share at a mode, modes found."""
    torch.manual_seed(0)
    ends, mixture = oracle.ends(EPISODES), oracle.mixture
    distance, nearest = torch.cdist(ends, torch.tensor(mixture.goals)).min(-1)
    there = distance < mixture.goal_radius
    samples = mixture.samples(EPISODES, torch.Generator().manual_seed(1))
    return mmd(ends, samples), float(there.float().mean()), len(nearest[there].unique())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--discounts", type=float, nargs="+", default=[0.9, 0.98, 0.99])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.03, 0.1, 0.3, 1.0, 3.0])
    parser.add_argument("--reward_scale", type=float, default=0.01)
    parser.add_argument("--out", type=Path, help="where to write the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "| start | discount | T | MMD, Soft | MMD, ExpectedQ | ratio "
        "| at a mode, Soft / ExpectedQ | modes, Soft / ExpectedQ |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ratios = []
    starts: tuple[Literal["uniform"], Literal["center"]] = ("uniform", "center")
    for start in starts:
        mixture = MixtureNavigation(start=start, reward_scale=options.reward_scale)
        for discount in options.discounts:
            for temperature in options.temperatures:
                soft, plain = (measure(Oracle(mixture, discount, temperature, backup)) for backup in BACKUPS)
                ratios.append(soft[0] / plain[0])
                lines.append(
                    f"| {start} | {discount} | {temperature} | {soft[0]:.3f} | {plain[0]:.3f} | {ratios[-1]:.2f} "
                    f"| {soft[1]:.2f} / {plain[1]:.2f} | {soft[2]} / {plain[2]} |"
                )
    print("\n".join(lines))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n")
    print(f"least_ratio={min(ratios):.2f} greatest_ratio={max(ratios):.2f}")


if __name__ == "__main__":
    main()
