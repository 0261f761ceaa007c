"""Whether one network that has learned a range of temperatures samples each of them, against quadrature.

    dqs-fit --config maze --model.temperature_range="[0.2,5]" --run_dir=runs/range
    python benchmarks/quality/temperature_range.py runs/range --range_updates 36000 --out results/temperature_range

The critics of the run are frozen. At five temperatures of the range and at four states of the maze, exp(Q/T) on a grid
of actions is compared with samples of the run's network; of a network that is trained at that temperature alone
(`BoltzmannSampler`, at states that the policy visits); and of one that is trained in the same way at all temperatures
of the range. Modes are the four quarters of directions, right, up, left and down. Writes a .json: the masses of the
modes, the largest differences, the entropy of the samples, and how much more CPU time an update takes.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from dqs_lightning.agents import DQS, load_agent
from dqs_lightning.cli.provenance import about
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.diffusion import BoltzmannSampler
from dqs_lightning.evaluation.goal_coverage import roll_out
from dqs_lightning.evaluation.returns import policy_of

STATES = 4
"""States that are compared: the middle of the room, and others that the policy visits, drawn at random."""
PAIRS = (("run", "quadrature"), ("range", "quadrature"), ("alone", "quadrature"), ("run", "alone"), ("range", "alone"))
SIDE = 201
"""Actions a side of the grid."""


def masses(action: Tensor, weight: Tensor) -> Tensor:
    """Returns the share of each quarter of directions in weighted actions [n, 2]: [4]."""
    quarter = ((torch.atan2(action[:, 1], action[:, 0]) + math.pi / 4) % (2 * math.pi) // (math.pi / 2)).long() % 4
    return torch.zeros(4).index_add(0, quarter, weight / weight.sum())


def grid() -> Tensor:
    side = (torch.arange(SIDE) + 0.5) * 2 / SIDE - 1
    return torch.cartesian_prod(side, side)


def cost(turns: int, updates: int = 10) -> float:
    """Returns the CPU time of losses and gradients with a range over that without one: a median of `turns` ratios."""
    rows, flags = 256, torch.zeros(256, 1, dtype=torch.bool)
    following = {"observation": torch.randn(rows, 24), "reward": torch.randn(rows, 1), "terminated": flags}
    observation, action = torch.randn(rows, 24), torch.rand(rows, 6) * 2 - 1
    batch = TensorDict({"observation": observation, "action": action, "next": following}, [rows])
    agents = [DQS(24, 6, temperature_range=factors) for factors in (None, (0.2, 5.0))]
    ratios = []
    for _ in range(turns):
        times = []
        for agent in agents:
            start = time.process_time()
            for _ in range(updates):
                agent.zero_grad()
                agent.losses(batch)[0].backward()
            times.append(time.process_time() - start)
        ratios.append(times[1] / times[0])
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--updates", type=int, default=12_000, help="of each network that is trained at one temperature"
    )
    parser.add_argument(
        "--range_updates", type=int, help="of the one that is trained at all of them; by default as many"
    )
    parser.add_argument("--samples", type=int, default=8000)
    parser.add_argument("--out", type=Path, help="the .json, without its suffix")
    parser.add_argument("--turns", type=int, default=21, help="of the comparison of costs, at walker-walk's sizes")
    options = parser.parse_args()
    range_updates = options.range_updates or options.updates
    torch.manual_seed(0)
    torch.set_num_threads(1)
    ratio = cost(options.turns)
    print(f"cost={ratio:.3f}", flush=True)
    agent = load_agent(options.run)
    assert isinstance(agent, DQS)
    span, present = agent.temperature_range, float(agent.temperature())
    env = OnlineData.load_from_checkpoint(options.run / "checkpoints" / "last.ckpt").make_environment(200, 0)
    positions = roll_out(env, policy_of(agent)).position
    moving = (positions[1:] != positions[:-1]).any(-1)
    visited = positions[:-1][moving]  # where an action is chosen
    states = torch.cat([torch.zeros(1, 2), visited[torch.randperm(len(visited))[: STATES - 1]]])
    norm, actions = agent.observation_norm, grid()
    rows: list[dict[str, Any]] = []
    frozen = BoltzmannSampler(2, condition_dim=3, noise_schedule=agent.diffusion.noise_schedule)
    at = span.draw(agent.temperature(), visited_often := norm(visited).repeat(8, 1))
    frozen.fit(
        lambda action, condition: agent.energy(condition)(action),
        range_updates, conditions=agent.condition(visited_often, at), progress=False,
    )  # fmt: skip
    for factor in torch.logspace(math.log10(span.low), math.log10(span.high), 5).tolist():
        temperature = factor * present
        alone = BoltzmannSampler(2, condition_dim=2, noise_schedule=agent.diffusion.noise_schedule)
        alone.fit(
            lambda action, condition, t=temperature: agent.log_prob(condition, torch.tensor(t))(action),
            options.updates, conditions=norm(visited), progress=False,
        )  # fmt: skip
        for state in states:
            seen = state.unsqueeze(0)
            with torch.no_grad():
                log_prob = agent.q_value(seen, actions.unsqueeze(1)).squeeze(-1) / temperature
            density = torch.softmax(log_prob, 0)
            area = (2 / SIDE) ** 2
            trajectory = agent.trajectory(seen, options.samples, temperature=temperature)
            together = trajectory.action[:, 0]
            single = alone.sample(options.samples, norm(state))
            all_of_them = frozen.sample(options.samples, agent.condition(norm(state), torch.tensor(temperature)))
            even = torch.ones(options.samples)
            found = {
                "quadrature": masses(actions, density),
                "run": masses(together, even),
                "range": masses(all_of_them, even),
                "alone": masses(single, even),
            }
            rows.append(
                {
                    "temperature": temperature,
                    "state": state.tolist(),
                    **{name: [round(share, 4) for share in shares.tolist()] for name, shares in found.items()},
                    **{f"{one}_to_{other}": float((found[one] - found[other]).abs().max()) for one, other in PAIRS},
                    "entropy": float(agent.diffusion.entropy(trajectory)),
                    "entropy_of_quadrature": float(torch.special.entr(density).sum() + math.log(area)),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    names = [f"{one}_to_{other}" for one, other in PAIRS]
    worst = {name: max(row[name] for row in rows) for name in names}
    orders = [[row["entropy"] for row in rows if row["state"] == state.tolist()] for state in states]
    monotone = all(entropies == sorted(entropies) for entropies in orders)
    print(f"monotone={monotone} " + " ".join(f"{name}={value:.3f}" for name, value in worst.items()))
    if options.out:
        updates = {"alone": options.updates, "range": range_updates}
        found_all = {
            "rows": rows,
            "updates": updates,
            "worst": worst,
            "entropy_is_monotone": monotone,
            "cost": ratio,
            "about": about(),
        }
        options.out.with_suffix(".json").write_text(json.dumps(found_all, indent=2) + "\n")


if __name__ == "__main__":
    main()
