"""Goals kept alive: a table and a picture of a sweep over a navigation task, from what GoalCoverage counted.

    dqs-sweep configs/sweeps/maze_temperature.yaml
    python benchmarks/goals.py runs/sweeps/maze_temperature --out benchmarks/results/maze_temperature

Takes the last count of every run that is done, and copies counts, scores and environment of each beside the table.
`--exact` compares a maze's shares with those of the entropy-regularised optimum at the run's temperature, which
`maze_oracle.py` finds by dynamic programming; each policy is then rolled out 2000 times. The last line printed holds
name=value pairs.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import torch
from keep import keep, without_place
from matplotlib.figure import Figure
from maze_oracle import Oracle
from provenance import about

from dqs_callbacks.pictures import COLOURS, DPI
from dqs_callbacks.trajectories import NOWHERE, colour_of
from dqs_lightning.agents import DQS, load_agent
from dqs_lightning.checkpoint.archive import checkpoint_of
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.envs import Maze
from dqs_lightning.evaluation.goal_coverage import goal_shares, roll_out
from dqs_lightning.evaluation.returns import policy_of

KEPT = ("goals.jsonl", "scores.jsonl", "env.json")
ROLLOUTS = 2000


def done_runs(sweeps: list[Path]) -> dict[str, list[Path]]:
    """Folders of the runs that are done, by variant, in the order of the sweeps."""
    found: dict[str, list[Path]] = {}
    for sweep in sweeps:
        manifest = json.loads((sweep / "manifest.json").read_text())
        for name, record in manifest["runs"].items():
            if record["state"] == "done":
                found.setdefault(name.split("/")[1], []).append(sweep / name)
    return found


def exactly(run: Path) -> dict[str, list[float]]:
    """Goals' shares among episodes that reach one: of the run's policy, and of the optimum at its temperature."""
    checkpoint = checkpoint_of(run)
    agent, maze = load_agent(checkpoint), OnlineData.load_from_checkpoint(checkpoint).environment
    assert isinstance(agent, DQS) and isinstance(maze, Maze)
    oracle = Oracle(maze, float(agent.temperature()), agent.discount)
    shares = {}
    for name, policy in (("policy", policy_of(agent)), ("exact", oracle.act)):
        torch.manual_seed(0)
        found = goal_shares(roll_out(maze.make(ROLLOUTS, 0), policy).goal, len(maze.goals))
        shares[name] = [round(float(share), 4) for share in found / found.sum()]
        shares[f"{name}_success"] = [round(float(found.sum()), 4)]
    return shares


def spread(numbers: list[float], digits: int = 2) -> str:
    """Mean and, in brackets, least and greatest."""
    mean = sum(numbers) / len(numbers)
    return f"{mean:.{digits}f} [{min(numbers):.{digits}f}, {max(numbers):.{digits}f}]"


def lines(rows: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The table: mean over seeds [least, greatest]."""
    has_mmd = all("mmd" in row for found in rows.values() for row in found)
    head = ["", "seeds", "success", "entropy of goals", "least share of a goal", "goals", "paths"]
    table = ["| " + " | ".join([*head, *["MMD"] * has_mmd]) + " |", "|---" * (len(head) + has_mmd) + "|"]
    for variant, found in rows.items():
        cells = [variant, str(len(found))]
        cells += [spread([row[name] for row in found]) for name in ("success", "goal_entropy")]
        cells += [f"{min(min(row['shares']) for row in found):.2f}"]
        cells += [spread([row[name] for row in found], 0) for name in ("goals", "paths")]
        if has_mmd:
            cells += [spread([row["mmd"] for row in found], 3)]
        table.append("| " + " | ".join(cells) + " |")
    return table


def draw(rows: dict[str, list[dict[str, Any]]], out: Path) -> None:
    """Shares of the goals in every run, one bar a seed."""
    figure = Figure(figsize=(4.6, 0.5 + 0.45 * len(rows)), layout="constrained")
    axis = figure.subplots()
    many = max(len(row["shares"]) for found in rows.values() for row in found) > len(COLOURS)
    for place, found in enumerate(rows.values()):
        for seed, row in enumerate(found):
            left, height = 0.0, 0.8 / len(found)
            shares = sorted(row["shares"], reverse=True) if many else row["shares"]
            for goal, share in [*enumerate(shares), (-1, 1 - sum(shares))]:
                colour = NOWHERE if goal < 0 else (COLOURS[goal % 2] if many else colour_of(goal))
                axis.barh(place - 0.4 + (seed + 0.5) * height, share, 0.9 * height, left, color=colour, linewidth=0)
                left += share
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set(xlim=(0, 1), xlabel="share of the rollouts, a bar a seed (grey: no goal)")
    axis.invert_yaxis()
    figure.savefig(out / "shares.png", dpi=DPI)


def main() -> None:
    """Parse, copy, compare, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", type=Path, nargs="+", help="the sweep's folder, or several that are one table")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--exact", action="store_true")
    options = parser.parse_args()
    options.sweeps = [sweep.absolute() for sweep in options.sweeps]
    if options.out.exists():
        shutil.rmtree(options.out)
    options.out.mkdir(parents=True)
    rows: dict[str, list[dict[str, Any]]] = {}
    comparison: dict[str, dict[str, list[float]]] = {}
    for variant, runs in done_runs(options.sweeps).items():
        for run in runs:
            keep(run, options.out / variant / run.name, KEPT)
            rows.setdefault(variant, []).append(json.loads((run / "goals.jsonl").read_text().splitlines()[-1]))
            if options.exact:
                comparison[f"{variant} {run.name}"] = exactly(run)
    table = lines(rows)
    if options.exact:
        table += ["", "| run | goals' shares | of the exact optimum | success | exact |", "|---|---|---|---|---|"]
        for name, found in comparison.items():
            shown = [", ".join(f"{share:.2f}" for share in found[kind]) for kind in found]
            table.append(f"| {name} | {shown[0]} | {shown[2]} | {shown[1]} | {shown[3]} |")
        far = [max(abs(a - b) for a, b in zip(f["policy"], f["exact"], strict=True)) for f in comparison.values()]
        print(f"greatest difference of a share, by seed: {[round(x, 3) for x in far]}")
    (options.out / "table.md").write_text("\n".join(table) + "\n")
    summary = json.dumps({"about": about(), "last": rows, "exact": comparison}, indent=1) + "\n"
    for sweep in options.sweeps:
        summary = summary.replace(str(sweep), f"runs/sweeps/{sweep.name}")
    (options.out / "summary.json").write_text(without_place(summary))
    draw(rows, options.out)
    print("\n".join(table))
    means = {
        f"{variant}_{name}": sum(row[name] for row in found) / len(found)
        for variant, found in rows.items()
        for name in ("success", "goal_entropy")
    }
    print(" ".join(f"{name}={mean:.3f}" for name, mean in means.items()))


if __name__ == "__main__":
    main()
