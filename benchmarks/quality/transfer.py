"""Compare agents that start from what another task has taught with agents that start from nothing.

    dqs-sweep sweeps/transfer_sources --out runs/before
    dqs-sweep sweeps/transfer
    python benchmarks/keep.py runs/before --out benchmarks/results/transfer_sources
    python benchmarks/keep.py runs/sweeps/transfer --out benchmarks/results/transfer
    python benchmarks/quality/transfer.py

Prints for each task and variant, as means and standard deviations over seeds: the return before the first update, the
mean return over all later evaluations (the area under the curve), the last return, and the first frame at which the
mean return over seeds is at least the last one of the same agent from nothing. `gain` is the area's ratio to that of
the same agent from nothing, over the seeds that both have. Writes transfer.json and transfer.png beside the study.
"""

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from several_tasks import spread, written

Curve = dict[int, float]
"""Return at each evaluation's frames."""
AGENTS = ("dqs", "sac")
SOURCES = {"walker-walk": "walker-stand", "walker-run": "walker-walk", "hopper-hop": "hopper-stand"}
"""For each task the one that was learned before."""
FREQUENCY = 10_000
"""Frames between evaluations; those of a run are at the first whole step after it."""


def curves_of(file: Path) -> dict[str, dict[str, dict[int, Curve]]]:
    """Returns the curves of all complete runs, by task, method and seed."""
    found: dict[str, Any] = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    with file.open(newline="") as stream:
        for row in csv.DictReader(stream):
            frames = int(row["frames"]) // FREQUENCY * FREQUENCY
            found[row["task"]][row["method"]][int(row["seed"])][frames] = float(row["return"])
    for methods in found.values():
        last = max(frames for seeds in methods.values() for curve in seeds.values() for frames in curve)
        for method, seeds in methods.items():
            methods[method] = {seed: curve for seed, curve in seeds.items() if last in curve}
    return found


def area(curve: Curve) -> float:
    """Returns the mean return of the evaluations after the first, which has seen no update."""
    return fmean(value for frames, value in curve.items() if frames)


def mean_curve(curves: dict[int, Curve]) -> Curve:
    """Returns the mean over seeds at each evaluation."""
    return {frames: fmean(curve[frames] for curve in curves.values()) for frames in sorted(next(iter(curves.values())))}


def compared(curves: dict[int, Curve], scratch: dict[int, Curve]) -> dict[str, Any]:
    """Returns the measures of a variant beside those of the same agent from nothing."""
    seeds = sorted(set(curves) & set(scratch))
    last = max(next(iter(curves.values())))
    threshold = mean_curve(scratch)[last]
    reached = [frames for frames, value in mean_curve(curves).items() if value >= threshold]
    return {
        "seeds": sorted(curves),
        "start": spread([curve[0] for curve in curves.values()]),
        "area": spread([area(curve) for curve in curves.values()]),
        "last": spread([curve[last] for curve in curves.values()]),
        "frames_to_last_of_scratch": min(reached, default=None),
        "gain": fmean(area(curves[seed]) for seed in seeds) / fmean(area(scratch[seed]) for seed in seeds),
    }


def draw(panel: Any, methods: dict[str, dict[int, Curve]], title: str) -> None:
    """Draws the mean curves of methods, and the least and the largest return of the seeds."""
    for method, curves in methods.items():
        mean = mean_curve(curves)
        (line,) = panel.plot(list(mean), list(mean.values()), label=method, linestyle="-" if "-" in method else "--")
        low, high = ([pick(curve[frames] for curve in curves.values()) for frames in mean] for pick in (min, max))
        panel.fill_between(list(mean), low, high, color=line.get_color(), alpha=0.12)
    panel.set(title=title, xlabel="frames", ylabel="return")
    panel.legend(fontsize=7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results" / "transfer")
    folder = parser.parse_args().results
    curves = curves_of(folder / "scores.csv")
    tasks = {task: curves[task] for task in SOURCES if task in curves}
    figure, panels = plt.subplots(
        len(AGENTS), len(tasks), figsize=(4.4 * len(tasks), 3.4 * len(AGENTS)), squeeze=False, layout="constrained"
    )
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for column, (task, methods) in enumerate(tasks.items()):
        for row, agent in enumerate(AGENTS):
            of_agent = {name: seeds for name, seeds in methods.items() if seeds and name.partition("-")[0] == agent}
            draw(panels[row][column], of_agent, f"{task} from {SOURCES[task]}, {agent}")
            for name, seeds in of_agent.items():
                found[task][name] = value = compared(seeds, methods[agent])
                cells = [written(value[key]) for key in ("start", "area", "last")]
                cells += [str(value["frames_to_last_of_scratch"]), f"{value['gain']:.2f}", str(len(value["seeds"]))]
                print("|", " | ".join([task, f"`{name}`", *cells]), "|")
    figure.savefig(folder / "transfer.png", dpi=110)
    (folder / "transfer.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
