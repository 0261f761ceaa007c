"""Learning curves of finished runs: a picture and a table, from their `scores.jsonl` alone.

    python benchmarks/learning.py --out benchmarks/results/cartpole-fast --random 52.1 DQS=runs/a DQS=runs/b

Each argument is LABEL=RUN_DIR; runs of one label are its seeds. Copies each run's scores and environment beside the
picture, so that it can be drawn again. `--random` draws the return of a uniformly random policy as a floor
(`dqs-eval RUN --random --episodes 100` measures it).
"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")  # Okabe and Ito: told apart by the colour-blind


def read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Frames, mean, low and high of a run's evaluations."""
    rows = [json.loads(line) for line in (path / "scores.jsonl").read_text().splitlines()]
    interval = np.array([row["return_ci95"] for row in rows])
    return (
        np.array([row["env_frames"] for row in rows]),
        np.array([row["return_mean"] for row in rows]),
        interval[:, 0],
        interval[:, 1],
    )


def keep(label: str, index: int, run: Path, out: Path) -> None:
    """Copy what a result must carry: scores, configuration, command, commit and versions."""
    target = out / f"{label}-{index}"
    target.mkdir(parents=True, exist_ok=True)
    for name in ("scores.jsonl", "env.json", "config.yaml"):
        # Where the run lay on the machine that made it is no part of the result.
        (target / name).write_text((run / name).read_text().replace(str(run.parent), "runs"))


def draw(groups: dict[str, list[Path]], random: float | None, title: str, out: Path) -> list[str]:
    """Draw the picture; returns the table's lines."""
    figure, axes = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
    table = ["| agent | seeds | frames | final return, each seed | mean |", "|---|---|---|---|---|"]
    for color, (label, runs) in zip(COLORS, groups.items(), strict=False):
        curves = [read(run) for run in runs]
        shared = min(len(curve[0]) for curve in curves)
        frames = curves[0][0][:shared]
        means = np.stack([curve[1][:shared] for curve in curves])
        if len(runs) == 1:
            low, high = curves[0][2], curves[0][3]
            note = "95 % interval over episodes"
        else:
            low, high = means.min(0), means.max(0)
            note = f"least and greatest of {len(runs)} seeds"
        axes.plot(
            frames, means.mean(0), color=color, linewidth=2, marker="o", markersize=3.5, label=f"{label} ({note})"
        )
        axes.fill_between(frames, low, high, color=color, alpha=0.2, linewidth=0)
        finals = ", ".join(f"{value:.0f}" for value in means[:, -1])
        table.append(f"| {label} | {len(runs)} | {frames[-1]:,} | {finals} | {means[:, -1].mean():.0f} |")
    if random is not None:
        axes.axhline(random, color="black", linewidth=1.2, linestyle="--", label=f"random policy ({random:.0f})")
        table.append(f"| random policy | - | - | - | {random:.0f} |")
    axes.set(xlabel="environment frames", ylabel="return of an episode", title=title)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    figure.savefig(out / "curve.png", dpi=200)
    return table


def main() -> None:
    """Parse, copy, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="LABEL=RUN_DIR")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--title", default="")
    parser.add_argument("--random", type=float, help="return of a uniformly random policy")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    groups: dict[str, list[Path]] = {}
    for argument in options.runs:
        label, _, run = argument.partition("=")
        groups.setdefault(label, []).append(Path(run))
    for label, runs in groups.items():
        for index, run in enumerate(runs):
            keep(label, index, run, options.out)
    table = draw(groups, options.random, options.title, options.out)
    (options.out / "table.md").write_text("\n".join(table) + "\n")
    print("\n".join(table))


if __name__ == "__main__":
    main()
