"""Keep the results of runs as a study: one tidy CSV file, a row an evaluation.

    python benchmarks/keep.py runs/sweeps/baselines --out benchmarks/results/baselines

Each argument is a run directory, a study, or a folder of them, such as a sweep's. `--name` is that of dqs-report, which
draws studies as it does the runs themselves. Counts of goals, where GoalCoverage made some, become `goals.csv`, and the
returns of the tasks of `MultiTask` become `tasks.csv`.
"""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dqs_lightning.cli.report.command import names_of
from dqs_lightning.cli.report.files import SCORES, Run, write_study
from dqs_lightning.cli.report.runs import read_runs

GOALS = ("rollouts", "success", "goal_entropy", "goals", "paths", "mmd", "shares")
"""Columns of `goals.csv` beside task, method, seed, frames and updates; shares of the goals are joined by spaces."""


def write_goals(runs: Sequence[Run], out: Path) -> None:
    """Write the counts of all runs that have some."""
    rows = []
    for run in runs:
        if run.folder and (file := run.folder / "goals.jsonl").exists():
            for line in file.read_text().splitlines():
                row = json.loads(line)
                row["shares"] = " ".join(map(str, row["shares"]))
                counted = [row["env_frames"], row["updates"], *(row.get(name, "") for name in GOALS)]
                rows.append([run.task, run.method, run.seed, *counted])
    write_csv(out / "goals.csv", ["task", "method", "seed", "frames", "updates", *GOALS], rows)


def write_tasks(runs: Sequence[Run], out: Path) -> None:
    """Write the return of each task in all evaluations of runs with several."""
    rows = []
    for run in runs:
        for line in (run.folder / SCORES).read_text().splitlines() if run.folder else ():
            row = json.loads(line)
            for member, value in row.get("return_by_task", {}).items():
                rows.append([run.task, run.method, run.seed, row["env_frames"], row["updates"], member, value])
    write_csv(out / "tasks.csv", ["task", "method", "seed", "frames", "updates", "member", "return"], rows)


def write_csv(file: Path, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write rows below a head; nothing where there are no rows."""
    if rows:
        with file.open("w", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows([head, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--name", action="append", default=[], metavar="PATH=[TASK/]METHOD")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    runs = read_runs(options.runs, names_of(options.name))
    write_study(runs, options.out)
    write_goals(runs, options.out)
    write_tasks(runs, options.out)
    print(f"{options.out}: {len(runs)} runs")


if __name__ == "__main__":
    main()
