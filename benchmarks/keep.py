"""Keep the results of runs as a study: one tidy CSV file, a row an evaluation.

    python benchmarks/keep.py runs/sweeps/baselines --out benchmarks/results/baselines

Each argument is a run directory, a study, or a folder of them, such as a sweep's. `--name` is that of dqs-report, which
draws studies as it does the runs themselves. Counts of goals, where GoalCoverage made some, become `goals.csv`, and the
returns of the tasks of `MultiTask` become `tasks.csv`. To add runs to a study, give both.
"""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dqs_lightning.cli.report.command import names_of
from dqs_lightning.cli.report.files import SCORES, Run, write_study
from dqs_lightning.cli.report.runs import find_files, read_runs

GOALS = ("rollouts", "success", "goal_entropy", "goals", "paths", "mmd", "shares")
"""Columns of `goals.csv` beside task, method, seed, frames and updates; shares of the goals are joined by spaces."""


def kept(given: Sequence[Path], name: str, runs: Sequence[Run]) -> list[list[str]]:
    """Returns the rows of a file of the given studies whose runs are of a study."""
    wanted = {(run.task, run.method, str(run.seed)) for run in runs if run.folder is None}
    files = (file for path in given for file in find_files(path, name))
    return [row for file in files for row in csv.reader(file.open(newline="")) if tuple(row[:3]) in wanted]


def goals_of(runs: Sequence[Run]) -> list[list[Any]]:
    """Returns a row for each count of goals of all runs that have some."""
    rows = []
    for run in runs:
        if run.folder and (file := run.folder / "goals.jsonl").exists():
            for line in file.read_text().splitlines():
                row = json.loads(line)
                row["shares"] = " ".join(map(str, row["shares"]))
                counted = [row["env_frames"], row["updates"], *(row.get(name, "") for name in GOALS)]
                rows.append([run.task, run.method, run.seed, *counted])
    return rows


def tasks_of(runs: Sequence[Run]) -> list[list[Any]]:
    """Returns a row for the return of each task in all evaluations of runs with several."""
    rows = []
    for run in runs:
        for line in (run.folder / SCORES).read_text().splitlines() if run.folder else ():
            row = json.loads(line)
            for member, value in row.get("return_by_task", {}).items():
                rows.append([run.task, run.method, run.seed, row["env_frames"], row["updates"], member, value])
    return rows


FILES = {"goals.csv": (goals_of, GOALS), "tasks.csv": (tasks_of, ("member", "return"))}
"""What each further file consists of: its rows, and their columns after task, method, seed, frames and updates."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--name", action="append", default=[], metavar="PATH=[TASK/]METHOD")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    runs = read_runs(options.runs, names_of(options.name))
    write_study(runs, options.out)
    for name, (rows_of, columns) in FILES.items():
        if rows := kept(options.runs, name, runs) + rows_of(runs):
            with (options.out / name).open("w", newline="") as stream:
                head = ["task", "method", "seed", "frames", "updates", *columns]
                csv.writer(stream, lineterminator="\n").writerows([head, *rows])
    print(f"{options.out}: {len(runs)} runs")


if __name__ == "__main__":
    main()
