"""The temperature of runs as they learn: what T was, and whether a controller held its entropy.

    python benchmarks/quality/temperatures.py runs/sweeps/dmc_temperature --out benchmarks/results/dmc_temperature

The folder holds TASK/VARIANT/seed=K. Writes `temperature.png`, T and the entropy of the policy at the states of its
batches (of runs whose temperature asks for it) against frames, a line a seed; and `temperature.json`, for each run T
and the entropy at the end, means of the last tenth. The returns of the same runs are dqs-report's.
"""

import argparse
import csv
import json
import statistics
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from dqs_callbacks.pictures import COLOURS, DPI
from dqs_lightning.cli.provenance import about

T, ENTROPY, TARGET = "train/temperature", "train/entropy", "train/target_entropy"
Curve = dict[str, list[float]]


def curve(run: Path) -> Curve:
    """Columns of a run's metrics.csv, of the rows that tell T."""
    columns = defaultdict(list)
    with (run / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row[T]:
                for name in ("env_frames", T, ENTROPY, TARGET):
                    if row.get(name):
                        columns[name].append(float(row[name]))
    return dict(columns)


def at_end(values: list[float]) -> float:
    return statistics.fmean(values[-max(len(values) // 10, 1) :])


def draw(curves: dict[str, dict[str, list[Curve]]], file: Path) -> None:
    """A row a task: T, and the entropy beside its target."""
    figure, axes = plt.subplots(len(curves), 2, figsize=(9, 2.9 * len(curves)), squeeze=False, layout="constrained")
    variants = list(dict.fromkeys(variant for task in curves.values() for variant in task))
    handles = {}
    for row, (task, runs) in zip(axes, curves.items(), strict=True):
        for variant, seeds in runs.items():
            turn, index = divmod(variants.index(variant), len(COLOURS))
            style = {"color": COLOURS[index], "linestyle": ("-", "--")[turn % 2], "linewidth": 1}
            for seed in seeds:
                thousands = [frames / 1000 for frames in seed["env_frames"]]
                (handles[variant],) = row[0].plot(thousands, seed[T], **style)
                if ENTROPY in seed:
                    row[1].plot(thousands, seed[ENTROPY], **style)
                    row[1].plot(thousands, seed[TARGET], color="0.5", linewidth=0.8, linestyle=":")
        row[0].set(yscale="log", ylabel="temperature", title=task)
        row[1].set(ylabel="entropy, nats a dimension", title=task)
        for panel in row:
            panel.set_xlabel("thousand frames")
    figure.legend(list(handles.values()), list(handles), loc="outside right center", frameon=False)
    figure.savefig(file, dpi=DPI)


def main() -> None:
    """Read, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    curves: dict[str, dict[str, list[Curve]]] = defaultdict(lambda: defaultdict(list))
    ends = {}
    for run in sorted(path.parent for path in options.sweep.glob("*/*/seed=*/metrics.csv")):
        found = curve(run)
        name = run.relative_to(options.sweep)
        curves[name.parts[0]][name.parts[1]].append(found)
        ends[str(name)] = {key.removeprefix("train/"): at_end(found[key]) for key in (T, ENTROPY) if key in found}
        print(f"{name!s:50} " + " ".join(f"{key}={value:.4g}" for key, value in ends[str(name)].items()))
    draw(curves, options.out / "temperature.png")
    content = {"at_end": ends, "about": about()}
    (options.out / "temperature.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
