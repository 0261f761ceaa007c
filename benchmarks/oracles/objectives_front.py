"""One policy for all weights of two objectives beside agents that are trained for one each, and the exact front.

    python benchmarks/oracles/objectives_front.py runs/objectives --seeds 0 --weights 0.1 0.3 0.5 0.7 0.9
    python benchmarks/oracles/objectives_front.py runs/objectives --seeds 0 --weights 0.1 0.3 0.5 0.7 0.9 --report

The first command trains what is not there yet with `configs/objectives_maze.yaml`, one run after the other; both
evaluate the runs and write returns.csv, summary.json and front.png. A weight is that of the first objective. Returns
are discounted as the agents discount them, and each action is the best of 16. The exact returns of each treasure follow
from the number of steps to it, by breadth-first search on a lattice from the middle of the start.
"""

import argparse
import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib.figure import Figure
from torch import Tensor

from dqs_callbacks.pictures import COLOURS, DPI
from dqs_lightning.agents import load_agent
from dqs_lightning.envs import ObjectivesMaze
from dqs_lightning.envs.maze import GAP
from dqs_lightning.evaluation.objectives import hypervolume, vector_returns
from dqs_lightning.evaluation.returns import policy_of

UNIT = 0.05
"""Spacing of the lattice, which divides the length of a move and the coordinates of start and walls."""
EPISODES, BEST_OF, DISCOUNT = 200, 16, 0.95
WEIGHTS = [step / 10 for step in range(11)]
RESULTS = Path(__file__).parents[1] / "results" / "objectives"


def steps_to_goals(maze: ObjectivesMaze) -> list[int]:
    """The smallest number of steps to each goal, whose episodes end at the first goal that they reach."""
    half, reach = round(1 / UNIT), round(maze.step / UNIT)
    side, move = torch.arange(-half, half + 1), torch.arange(-reach, reach + 1)
    states, moves = torch.cartesian_prod(side, side), torch.cartesian_prod(move, move)
    goal = maze.goal_of(states.double() * UNIT).squeeze(-1)
    found: dict[int, int] = {}
    start = (states == (torch.tensor(maze.start) / UNIT).round()).all(-1)
    seen, latest, steps = start.clone(), states[start], 0
    while len(latest):
        steps += 1
        before, after = latest.repeat_interleave(len(moves), 0), (latest.unsqueeze(1) + moves).flatten(0, 1)
        inside = (after.abs() <= half).all(-1)
        before, after = before[inside], after[inside]
        ends = maze.blocked(before.double() * UNIT, after.double() * UNIT)
        after = after[(ends - after.double() * UNIT).abs().amax(-1) < GAP / 10]
        reached = torch.zeros_like(seen)
        reached[(after + half) @ torch.tensor([2 * half + 1, 1])] = True
        new = reached & ~seen
        seen |= new
        for index in goal[new].unique().tolist():
            found.setdefault(index, steps)
        latest = states[new & (goal < 0)]
    return [found[index] for index in range(len(maze.goals))]


def exact_returns(maze: ObjectivesMaze) -> Tensor:
    """Discounted return vectors of going straight to each goal, [goals, 2]."""
    steps = torch.tensor(steps_to_goals(maze)).unsqueeze(-1)
    discounted = (1 - DISCOUNT**steps) / (1 - DISCOUNT) * torch.tensor(maze.step_reward)
    return DISCOUNT ** (steps - 1) * torch.tensor(maze.goal_rewards) + discounted


def train(folder: Path, weights: list[float], seeds: list[int], options: list[str]) -> None:
    """Trains what is not there yet."""
    for seed in seeds:
        for name in ("all", *map(str, weights)):
            run = folder / f"{name}-{seed}"
            if (run / "checkpoints" / "last.ckpt").exists():
                continue
            single = [] if name == "all" else ["--model=DQS", f"--data.environment.weights={pair(float(name))}"]
            command = ["dqs-fit", "--config", "objectives_maze", f"--run_dir={run}", f"--seed_everything={seed}"]
            subprocess.run([*command, *single, *options], check=True)


def pair(weight: float) -> list[float]:
    return [weight, round(1 - weight, 6)]


def evaluate(folder: Path, weights: list[float], seeds: list[int]) -> list[dict[str, Any]]:
    """Mean return vectors: of the agents for all weights at `WEIGHTS`, of each other at its own."""
    rows = []
    for seed in seeds:
        for name in ("all", *map(str, weights)):
            agent = load_agent(folder / f"{name}-{seed}")
            for weight in WEIGHTS if name == "all" else [float(name)]:
                torch.manual_seed(0)
                env = ObjectivesMaze(pair(weight)).make(EPISODES, seed=0)
                value, time = vector_returns(env, policy_of(agent, best_of=BEST_OF), DISCOUNT).mean(0).tolist()
                method = "all weights" if name == "all" else "one weight"
                weighted = weight * value + (1 - weight) * time
                row = {"method": method, "seed": seed, "weight": weight, "value": value, "time": time}
                rows.append({**row, "weighted": weighted})
    return [{key: round(x, 4) if isinstance(x, float) else x for key, x in row.items()} for row in rows]


def summary(rows: list[dict[str, Any]], exact: Tensor, reference: list[float]) -> dict[str, Any]:
    """Hypervolumes, and the mean loss of weighted return against the exact optimum."""
    found: dict[str, Any] = {"reference": reference, "exact": {"hypervolume": round(hypervolume(exact, reference), 4)}}
    shared = {row["weight"] for row in rows if row["method"] == "one weight"}
    for label, method, kept in (
        ("all weights", "all weights", set(WEIGHTS)),
        ("all weights, at those of the others", "all weights", shared),
        ("one weight", "one weight", shared),
    ):
        each = []
        for seed in sorted({row["seed"] for row in rows}):
            own = [r for r in rows if r["method"] == method and r["seed"] == seed and r["weight"] in kept]
            if not own:
                continue
            points = torch.tensor([[row["value"], row["time"]] for row in own])
            losses = [float((exact @ torch.tensor(pair(row["weight"]))).max()) - row["weighted"] for row in own]
            each.append((hypervolume(points, reference), sum(losses) / len(losses), max(losses)))
        names = ("hypervolume", "mean_loss", "largest_loss")
        if each:
            found[label] = {name: [round(values[i], 4) for values in each] for i, name in enumerate(names)}
    return found


def draw(rows: list[dict[str, Any]], exact: Tensor) -> Figure:
    """The front of returns, and the weighted return at each weight."""
    figure = Figure(figsize=(8.4, 3.5), layout="constrained")
    front, weighted = figure.subplots(1, 2)
    front.plot(*exact.T.tolist(), color="0.6", linewidth=1, zorder=1)
    front.scatter(*exact.T.tolist(), s=70, marker="o", facecolor="none", edgecolor="0.4", label="exact", zorder=2)
    fine = torch.linspace(0, 1, 201)
    best = (exact @ torch.stack([fine, 1 - fine])).amax(0)
    weighted.plot(fine.tolist(), best.tolist(), color="0.6", linewidth=1, label="exact")
    for method, marker, colour in (("all weights", "o", COLOURS[0]), ("one weight", "x", COLOURS[1])):
        if not (own := [row for row in rows if row["method"] == method]):
            continue
        style: Any = {"s": 26, "marker": marker, "color": colour, "zorder": 3}
        label = {"all weights": "one agent for all weights", "one weight": "an agent for each weight"}[method]
        front.scatter([row["value"] for row in own], [row["time"] for row in own], label=label, **style)
        weighted.scatter([row["weight"] for row in own], [row["weighted"] for row in own], label=label, **style)
    front.set(xlabel="discounted return: treasure", ylabel="discounted return: time", title="front")
    weighted.set(xlabel="weight of the treasure", ylabel="weighted return", title="weighted return")
    weighted.legend(frameon=False)
    return figure


def main() -> None:
    """Train, evaluate, write, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--weights", type=float, nargs="*", default=[0.1, 0.3, 0.5, 0.7, 0.9])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options, further = parser.parse_known_args()
    if not options.report:
        train(options.runs, options.weights, options.seeds, further)
    maze = ObjectivesMaze()
    exact, rows = exact_returns(maze), evaluate(options.runs, options.weights, options.seeds)
    never = maze.step_reward[1] * (1 - DISCOUNT**maze.horizon) / (1 - DISCOUNT)
    found = summary(rows, exact, [0.0, round(never, 4)])
    found["exact"]["points"] = [[round(x, 4) for x in point] for point in exact.tolist()]
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "returns.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (options.out / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(rows, exact).savefig(options.out / "front.png", dpi=DPI)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
