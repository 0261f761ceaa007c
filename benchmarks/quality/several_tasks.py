"""Compare one agent of several tasks with agents of one task, at equal updates for each task.

    dqs-sweep sweeps/tasks_together
    dqs-sweep sweeps/tasks_apart
    python benchmarks/keep.py runs/sweeps/tasks_together --out benchmarks/results/tasks_together
    python benchmarks/keep.py runs/sweeps/tasks_apart --out benchmarks/results/tasks_apart
    python benchmarks/quality/several_tasks.py

Reads the returns of the last evaluations. For each agent of several tasks, and for each of its tasks, prints mean and
standard deviation over seeds of both kinds of agents; and the ratio of the means over tasks. A variant such as
dqs-pooled is compared with dqs. Writes several_tasks.json beside the two studies.
"""

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

Returns = dict[str, dict[int, float]]
"""For each task the return of each seed."""


def last_returns(file: Path, name: str) -> dict[tuple[str, str], Returns]:
    """Returns the last evaluations of all runs, by task and method of the run; `name` is the column of the task."""
    found: dict[tuple[str, str], Returns] = defaultdict(lambda: defaultdict(dict))
    with file.open(newline="") as stream:
        for row in csv.DictReader(stream):  # in order of frames
            found[row["task"], row["method"]][row[name]][int(row["seed"])] = float(row["return"])
    return found


def spread(values: Iterable[float]) -> dict[str, float | None]:
    """Returns the mean and the standard deviation of values; one value has no standard deviation."""
    values = list(values)
    return {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else None}


def written(values: dict[str, float | None]) -> str:
    """Returns "mean ± standard deviation", or the mean alone of one value."""
    return f"{values['mean']:.0f}" + (f" ± {values['std']:.0f}" if values["std"] is not None else "")


def compared(together: Returns, apart: dict[str, dict[int, float]]) -> dict[str, Any]:
    """Returns both kinds of agents' returns of each task, of the seeds that both have, and of the mean over tasks."""
    seeds = sorted(set.intersection(*(set(both[task]) for both in (together, apart) for task in together)))
    rows = {
        task: {
            kind: spread(returns[task][seed] for seed in seeds)
            for kind, returns in (("together", together), ("apart", apart))
        }
        for task in together
    }
    means = {
        kind: [fmean(returns[task][seed] for task in together) for seed in seeds]
        for kind, returns in (("together", together), ("apart", apart))
    }
    ratio = fmean(means["together"]) / fmean(means["apart"])
    return {"seeds": seeds, "tasks": rows, "mean": {kind: spread(x) for kind, x in means.items()}, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    folder = parser.parse_args().results
    apart: dict[str, Returns] = defaultdict(dict)
    for (_, method), returns in last_returns(folder / "tasks_apart" / "scores.csv", "task").items():
        apart[method] |= returns
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for (label, method), together in last_returns(folder / "tasks_together" / "tasks.csv", "member").items():
        found[label][method] = row = compared(together, apart[method.partition("-")[0]])
        print(f"{label}, {method}, seeds {row['seeds']}: ratio of the means {row['ratio']:.2f}")
        for task, kinds in {**row["tasks"], "mean": row["mean"]}.items():
            print(f"  {task:15}", *(f"{kind} {written(values)}" for kind, values in kinds.items()), sep="  ")
    (folder / "several_tasks.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
