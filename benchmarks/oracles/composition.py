"""What the sum of two Q functions loses against the optimum of the sum of two rewards, exactly and as it was learned.

    O="--model.discount=0.92 --model.temperature.value=0.01 --model.exploration_noise=0.5"
    O="$O --data.environment.step=0.15 --data.environment.horizon=40 --data.environment.start_noise=1.0"
    dqs-fit --config maze $O --data.environment.goals=[[-0.8,-0.8],[-0.8,0.8]] --run_dir=runs/left-side
    dqs-fit --config maze $O --data.environment.goals=[[-0.8,0.8],[0.8,0.8]] --run_dir=runs/upper-side
    dqs-fit --config maze $O --data.environment.goals=[[-0.8,0.8],[0.8,-0.8]] --run_dir=runs/diagonal
    O="--model.discount=0.92 --data.environment=Targets"
    dqs-fit --config maze $O --data.environment.targets=[[-0.6,0.0]] --run_dir=runs/left
    dqs-fit --config maze $O --data.environment.targets=[[0.6,0.0]] --run_dir=runs/right
    dqs-fit --config maze $O --data.environment.targets=[[0.6,0.4]] --run_dir=runs/up
    python benchmarks/oracles/composition.py --runs runs --out benchmarks/results/composition

Each pair names two tasks of `TASKS`. Dynamic programming on a grid gives, for the states in which episodes begin, V* of
the sum, also of the steps of an episode; V of the greedy policy of Q1 + Q2 with the exact Q of each task, whose equally
good actions are equally likely; and the bound of docs/several.md on their difference. For mazes it also gives the
shares of the goals, of the greedy policy and of `Composed` with the exact entropy-regularised Q of the runs'
temperature. Where --runs has a run of both tasks, the discounted returns of `Composed` are measured from the same
states, with the energies themselves and with a network that is distilled from them, and the error of each critic is
given. Writes a .json and a .png.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Circle
from torch import Tensor

from dqs_lightning.agents import DQS, Agent, Composed, load_agent
from dqs_lightning.cli.provenance import about
from dqs_lightning.cli.report.files import run_of
from dqs_lightning.envs import Maze, Navigation, Targets
from dqs_lightning.envs.navigation import PlaneBatch
from dqs_lightning.evaluation.goal_coverage import Rollouts, roll_out
from dqs_lightning.evaluation.returns import Policy

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
PAIRS = ["left-side+upper-side", "left-side+diagonal", "right+up", "left+right"]


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


def facts(folder: Path) -> dict[str, Any]:
    """Returns seed, frames, commit and command of a run."""
    run = run_of(folder.resolve(), folder.name)
    return {"seed": run.seed, "frames": run.rows[-1][0], "commit": run.commit, "command": run.command}


@torch.no_grad()
def critic_error(agent: Agent, task: Navigation) -> float:
    """Returns the standard deviation over actions of the error of an agent's Q, a root mean square over states.

    The exact Q is the entropy-regularised one of the agent's temperature. A constant error at a state has no effect.
    """
    assert isinstance(agent, DQS)
    grid = Grid(task)
    rows, actions = torch.arange(0, len(grid.states), 7), grid.actions.float()
    expected = grid.optimum(temperature=float(agent.temperature()))[rows]
    learned = [agent.q_value(state.repeat(len(actions), 1), actions) for state in grid.states[rows].float()]
    return float((torch.stack(learned) - expected).std(1).square().mean().sqrt())


def measured(act: Policy, task: Navigation, episodes: int) -> tuple[dict[str, Any], Rollouts]:
    """Returns discounted returns beside V* of the same starts, the goals, and milliseconds of a decision."""
    rewards: list[Tensor] = []
    env = task.make(episodes, 1_000)
    torch.manual_seed(0)
    rollouts = roll_out(env, act)
    step, goals = DISCOUNT ** torch.arange(len(rollouts.position)), task.goals
    for t in range(1, len(rollouts.position)):
        moved = (rollouts.position[t] != rollouts.position[t - 1]).any(-1)
        if isinstance(task, Targets):
            rewards.append(step[t - 1] * task.reward(rollouts.position[t].double()).squeeze(-1).float())
        else:
            assert isinstance(task, Maze)
            there = task.goal_of(rollouts.position[t].double()).squeeze(-1)
            paid = torch.tensor([*(task.rewards or ()), 0.0])[there]
            rewards.append(step[t - 1] * paid * moved)
    start = time.perf_counter()
    for _ in range(20):
        act(rollouts.position[0][:1])
    ms = 1e3 * (time.perf_counter() - start) / 20
    shares = [float((rollouts.goal == index).float().mean()) for index in range(len(goals))]
    return {"return": float(torch.stack(rewards).sum(0).mean()), "goal_shares": shares, "decision_ms": ms}, rollouts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=PAIRS)
    parser.add_argument("--runs", type=Path, help="folder of runs, named as the tasks")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--updates", type=int, default=3000, help="of the distilled network")
    parser.add_argument("--out", type=Path, help="beginning of the names of the files")
    parser.add_argument("--brief", action="store_true", help="one pair, to see that it works")
    options = parser.parse_args()
    if options.brief:
        options.pairs = options.pairs[:1]
    figure, panels = plt.subplots(1, len(options.pairs), figsize=(4.2 * len(options.pairs), 4), squeeze=False)
    found: dict[str, Any] = {}
    for panel, pair in zip(panels[0], options.pairs, strict=True):
        first, second = (TASKS[name] for name in pair.split("+"))
        task = sum_of(first, second)
        horizon = int(getattr(task, "horizon"))  # noqa: B009  # both kinds have one
        values = exact(first, second, horizon)
        starts = cell(task.make(options.episodes, 1_000).reset()["position"].double())
        row: dict[str, Any] = {name: value[starts].mean(0).tolist() for name, value in vars(values).items()}
        if isinstance(task, Targets):  # whose episodes end at no goal
            del row["shares"], row["sampled_shares"]
        paths = None
        folders = [options.runs / name for name in pair.split("+")] if options.runs else []
        if folders and all(folder.exists() for folder in folders):
            agents = [load_agent(folder) for folder in folders]
            row["runs"] = [facts(folder) for folder in folders]
            row["critic_error"] = [
                critic_error(agent, task) for agent, task in zip(agents, (first, second), strict=True)
            ]
            policy = Composed(agents)
            row["learned"], paths = measured(policy.act, task, options.episodes)
            begin = time.perf_counter()
            policy.distil(paths.position.reshape(-1, 2), options.updates)
            row["distil_s"] = time.perf_counter() - begin
            row["distilled"], _ = measured(policy.act, task, options.episodes)
            row["distilled, best of 16"], _ = measured(partial(policy.act, best_of=16), task, options.episodes)
        found[pair] = row
        print(pair, json.dumps(row), flush=True)
        draw(panel, task, values, paths, pair)
    figure.tight_layout()
    if options.out:
        figure.savefig(options.out.with_suffix(".png"), dpi=110)
        options.out.with_suffix(".json").write_text(json.dumps({"pairs": found, "about": about()}, indent=2) + "\n")


def draw(panel: Any, task: Navigation, values: Exact, paths: Rollouts | None, pair: str) -> None:
    """Draws the disagreement of the two tasks, the goals, and paths of the composed policy."""
    picture = values.disagreement.view(CELLS, CELLS).T
    image = panel.imshow(picture, origin="lower", extent=(-1, 1, -1, 1), cmap="Greys", vmin=0)
    plt.colorbar(image, ax=panel, fraction=0.046)
    for x1, y1, x2, y2 in task.walls:
        panel.plot([x1, x2], [y1, y2], color="black", linewidth=2)
    for x, y in task.goals:
        panel.add_patch(Circle((x, y), task.goal_radius, fill=False, color="tab:red", linewidth=1.5))
    if paths is not None:
        for index in range(min(40, paths.position.shape[1])):
            panel.plot(*paths.position[:, index].T, color="tab:blue", linewidth=0.7, alpha=0.6)
    panel.set(title=pair.replace("+", " + "), xticks=[-1, 0, 1], yticks=[-1, 0, 1])


if __name__ == "__main__":
    main()
