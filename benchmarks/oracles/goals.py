"""Goals that a policy covers: a table and a picture of a study of a navigation task, from what GoalCoverage counted.

    dqs-sweep configs/sweeps/maze_temperature.yaml
    python benchmarks/keep.py runs/sweeps/maze_temperature --out benchmarks/results/maze_temperature
    python benchmarks/oracles/goals.py benchmarks/results/maze_temperature

Takes the last count in `goals.csv` of every run that is done. `--exact` reads the checkpoints of a maze's runs and adds
`exact.csv`: the shares of each policy, rolled out 2000 times, and those of the entropy-regularised optimum at the run's
temperature, which `maze_oracle.py` finds by dynamic programming. The last line printed holds name=value pairs.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import pandas as pd
import torch
from matplotlib.figure import Figure
from maze_oracle import Oracle

from dqs_callbacks.goals import NOWHERE, colour_of
from dqs_callbacks.pictures import COLOURS, DPI
from dqs_lightning.agents import DQS, load_agent
from dqs_lightning.checkpoint.archive import checkpoint_of
from dqs_lightning.cli.report.runs import read_runs
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.envs import Maze
from dqs_lightning.evaluation.goal_coverage import goal_shares, roll_out
from dqs_lightning.evaluation.returns import policy_of

ROLLOUTS = 2000
KEYS = ["task", "method", "seed"]


def last_counts(study: Path) -> dict[str, list[dict[str, Any]]]:
    """The last count of every run that is done, by method."""
    scores = pd.read_csv(study / "scores.csv", keep_default_na=False)
    done = scores[scores["state"].isin(["", "done"])][KEYS].drop_duplicates()
    counts = pd.read_csv(study / "goals.csv").merge(done)
    counts["shares"] = [[float(share) for share in text.split()] for text in counts["shares"]]
    last = counts.groupby(KEYS, sort=False).last().dropna(axis=1).reset_index()
    return {method: rows.to_dict("records") for method, rows in last.groupby("method", sort=False)}


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


def exact_table(study: Path) -> pd.DataFrame:
    """The comparison of `exactly`, a row a run, as it is kept."""
    return pd.read_csv(study / "exact.csv", dtype={"policy": str, "exact": str})


def main() -> None:
    """Parse, compare, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--exact", type=Path, nargs="+", metavar="RUNS", default=[])
    options = parser.parse_args()
    rows = last_counts(options.study)
    if options.exact:
        found = []
        for run in read_runs(options.exact):
            if run.folder is None:
                raise SystemExit(f"--exact: {run.task}, {run.method} is of a study; it must be a run directory")
            shares = {name: " ".join(map(str, values)) for name, values in exactly(run.folder).items()}
            found.append({"task": run.task, "method": run.method, "seed": run.seed, **shares})
        pd.DataFrame(found).to_csv(options.study / "exact.csv", index=False)
    table = lines(rows)
    if (options.study / "exact.csv").exists():
        table += ["", "| run | goals' shares | of the exact optimum | success | exact |", "|---|---|---|---|---|"]
        far = []
        for run in exact_table(options.study).itertuples():
            policy, exact = ([float(share) for share in text.split()] for text in (run.policy, run.exact))
            shown = [", ".join(f"{share:.2f}" for share in shares) for shares in (policy, exact)]
            success = f"{run.policy_success:.2f} | {run.exact_success:.2f}"
            table.append(f"| {run.method} seed={run.seed} | {shown[0]} | {shown[1]} | {success} |")
            far.append(round(max(abs(a - b) for a, b in zip(policy, exact, strict=True)), 3))
        print(f"greatest difference of a share, by seed: {far}")
    (options.study / "table.md").write_text("\n".join(table) + "\n")
    draw(rows, options.study)
    print("\n".join(table))
    means = {
        f"{method}_{name}": sum(row[name] for row in found) / len(found)
        for method, found in rows.items()
        for name in ("success", "goal_entropy")
    }
    print(" ".join(f"{name}={mean:.3f}" for name, mean in means.items()))


if __name__ == "__main__":
    main()
