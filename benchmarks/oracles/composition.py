"""What the sum of two Q functions loses against the optimum of the sum of two rewards, exactly and as it was learned.

    O="--model.discount=0.92 --model.temperature.value=0.01 --model.exploration_noise=0.5"
    O="$O --data.environment.step=0.15 --data.environment.horizon=40 --data.environment.start_noise=1.0"
    dqs-fit --config maze $O --data.environment.goals=[[-0.8,-0.8],[-0.8,0.8]] --run_dir=runs/seed0/left-side
    dqs-fit --config maze $O --data.environment.goals=[[-0.8,0.8],[0.8,0.8]] --run_dir=runs/seed0/upper-side
    dqs-fit --config maze $O --data.environment.goals=[[-0.8,0.8],[0.8,-0.8]] --run_dir=runs/seed0/diagonal
    O="--model.discount=0.92 --data.environment=Targets"
    dqs-fit --config maze $O --data.environment.targets=[[-0.6,0.0]] --run_dir=runs/seed0/left
    dqs-fit --config maze $O --data.environment.targets=[[0.6,0.0]] --run_dir=runs/seed0/right
    dqs-fit --config maze $O --data.environment.targets=[[0.6,0.4]] --run_dir=runs/seed0/up
    python benchmarks/oracles/composition.py --runs runs/seed0 --out benchmarks/results/composition

Each pair names two tasks of `TASKS`. Dynamic programming on a grid gives, for the states in which episodes begin, V* of
the sum, also of the steps of an episode; V of the greedy policy of Q1 + Q2 with the exact Q of each task, whose equally
good actions are equally likely; and the bound of docs/several.md on their difference. For mazes it also gives the
shares of the goals, of the greedy policy and of `Composed` with the exact entropy-regularised Q of the runs'
temperature. For each folder of --runs that has a run of both tasks, the discounted returns of `Composed` are measured
from the same states, with the energies themselves and with a network that is distilled from them, and the error of each
critic is given. Writes a .json and a .png.
"""

import argparse
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from composition_exact import CELLS, DISCOUNT, TASKS, Exact, Grid, cell, exact, sum_of
from matplotlib.patches import Circle
from torch import Tensor

from dqs_lightning.agents import DQS, Agent, Composed, load_agent
from dqs_lightning.cli.provenance import about
from dqs_lightning.cli.report.files import run_of
from dqs_lightning.envs import Maze, Navigation, Targets
from dqs_lightning.evaluation.goal_coverage import Rollouts, roll_out
from dqs_lightning.evaluation.returns import Policy

PAIRS = ["left-side+upper-side", "left-side+diagonal", "right+up", "left+right"]


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


def learned_sum(
    folders: Sequence[Path], task: Navigation, episodes: int, updates: int
) -> tuple[dict[str, Any], Rollouts]:
    """Returns what `Composed` reaches with the agents of two runs, and its episodes before a network is distilled."""
    agents = [load_agent(folder) for folder in folders]
    policy = Composed(agents)
    found: dict[str, Any] = {
        "runs": [facts(folder) for folder in folders],
        "critic_error": [critic_error(agent, TASKS[run.name]) for agent, run in zip(agents, folders, strict=True)],
    }
    found["sampled"], paths = measured(policy.act, task, episodes)
    begin = time.perf_counter()
    policy.distil(paths.position.reshape(-1, 2), updates)
    found["distil_s"] = time.perf_counter() - begin
    found["distilled"], _ = measured(policy.act, task, episodes)
    found["distilled, best of 16"], _ = measured(partial(policy.act, best_of=16), task, episodes)
    return found, paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=PAIRS)
    parser.add_argument(
        "--runs", type=Path, nargs="*", default=[], help="folders of runs named as the tasks, each a seed"
    )
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
        names, paths = pair.split("+"), None
        row["learned"] = []
        for folder in options.runs:
            if all((folder / name).exists() for name in names):
                learned, last = learned_sum([folder / name for name in names], task, options.episodes, options.updates)
                row["learned"].append(learned)
                paths = paths or last
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
