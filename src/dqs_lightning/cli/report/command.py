"""`dqs-report`: curves, tables and a comparison of runs with intervals over seeds, on one page."""

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MUJOCO_GL", "disabled")
os.environ.setdefault("MPLBACKEND", "agg")  # a matplotlibrc in the working directory could name any module

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from dqs_lightning.cli.errors import BAD_INPUT, DONE, InputError
from dqs_lightning.cli.escape import printable, printable_lines
from dqs_lightning.cli.reading import read_json
from dqs_lightning.cli.report.choices import Choices, choose_baseline, choose_frames, names_of
from dqs_lightning.cli.report.content import MADE_BY, SUMMARY, compose
from dqs_lightning.cli.report.decisions import time_decisions
from dqs_lightning.cli.report.provenance import without_place, without_scores
from dqs_lightning.cli.report.published import DEFAULT, choose
from dqs_lightning.cli.report.runs import Run, grouped, read_runs
from dqs_lightning.cli.report.statistics import Groups
from dqs_lightning.cli.report.tables import Table
from dqs_lightning.cli.writing import existing_folder

MAX_RETURNS = (1e-9, 1e100)
"""Least and largest value of --max-return."""
UNFINISHED = ".dqs-report-"
"""How the folder of a report that is being written begins."""
MOST = 200
"""Tasks, and methods, of one report."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="dqs-report",
        description="Curves, tables and a comparison of runs with intervals over seeds, on one page. A run's task is "
        "its environment; its method is the variant of a sweep, the folder above the time in runs/TASK/AGENT/TIME, or "
        "the agent. Exit codes: 0 done, 2 bad input.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", type=Path, nargs="+", help="run directories, or folders of them such as a sweep's")
    parser.add_argument("--out", type=Path, required=True, help="folder for the report: new, empty, or a report's")
    parser.add_argument("--frames", type=int, nargs="+", help="of the tables (default: the last that all runs reached)")
    parser.add_argument("--baseline", help="method to compare with (default: sac, or the first)")
    parser.add_argument("--max-return", type=float, default=1000.0, help="what returns are divided by (default 1000)")
    drawn = ", ".join(DEFAULT)
    parser.add_argument("--published", nargs="+", metavar="NAME", help=f"published returns, or none (default {drawn})")
    parser.add_argument("--time-actions", action="store_true", help="time a decision of each method's checkpoint, now")
    parser.add_argument(
        "--name", action="append", default=[], metavar="PATH=[TASK/]METHOD",
        help="call the runs at and below a path so; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--trust", action="append", default=[], metavar="PACKAGE",
        help="a further package whose classes the checkpoints of --time-actions may name; may be repeated",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    for frames in options.frames or []:
        if frames < 1:
            parser.error(f"--frames={frames}: allowed is 1 or more")
    least, largest = MAX_RETURNS
    if not least <= options.max_return <= largest:
        parser.error(f"--max-return={options.max_return}: allowed is {least:g} to {largest:g}")
    return options


def earlier_files(out: Path) -> set[str]:
    """Names of the files of the report that `out` holds; none where it is empty or not there.

    Raises:
        InputError: when it holds anything else, which would be mixed up or lost, or when it cannot be written.
    """
    existing_folder(f"--out={out}", out)
    if not out.exists():
        return set()
    try:
        there = {entry.name for entry in out.iterdir() if not entry.name.startswith(UNFINISHED)}
    except OSError as error:
        raise InputError(f"--out={out}: cannot be read: {error.strerror or error}") from error
    try:
        summary = read_json(out / SUMMARY)
        own = set(summary["files"]) if summary["made_by"] == MADE_BY else set()
    except (InputError, KeyError, TypeError):
        own = set()
    if foreign := sorted(there - own):
        raise InputError(
            f"--out={out}: holds {foreign[0]}, which is no file of an earlier report; allowed is a new folder, an "
            "empty one, or one with nothing but a report"
        )
    return there


def write(out: Path, files: dict[str, bytes], earlier: set[str]) -> None:
    """Write the whole report, and remove the files of an earlier one that are not in it.

    All files are written to a folder of their own first, so that a disk that is full leaves the earlier report.

    Raises:
        InputError: when the folder cannot be written.
    """
    try:
        for left in out.glob(f"{UNFINISHED}*"):  # by a process that was killed
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=existing_folder(f"--out={out}", out)) as place:
            for name, content in files.items():
                (Path(place) / name).write_bytes(content)
            out.mkdir(parents=True, exist_ok=True)
            for name in files:
                os.replace(Path(place) / name, out / name)
        for name in earlier - files.keys():
            (out / name).unlink()
    except OSError as error:
        raise InputError(f"--out={out}: {error.strerror or error}") from error


def show(table: Table, page: Path) -> None:
    """Print the returns, and where the page is."""
    console = Console(width=None if sys.stdout.isatty() else 200)
    shown = RichTable(*table.head, box=None)
    for row in table.rows:
        shown.add_row(*(Text(cell) for cell in row))
    console.print(shown)
    console.print(printable(page, longest=None), markup=False, highlight=False, soft_wrap=True)


def check_counts(groups: Groups) -> None:
    """Refuse more tasks or methods than a picture has room for.

    Raises:
        InputError: it names the number.
    """
    methods = {method for by_method in groups.values() for method in by_method}
    for name, count in (("tasks", len(groups)), ("methods", len(methods))):
        if count > MOST:
            raise InputError(f"RUNS: {count} {name}; a report has room for {MOST}")


def choices_of(options: argparse.Namespace, arguments: Sequence[str], runs: Sequence[Run]) -> Choices:
    """What the command line chose, checked against the runs.

    Raises:
        InputError: when it chose what is not there, or there are too many tasks or methods.
    """
    groups = grouped(runs)
    check_counts(groups)
    last = {task: max(run.scores.frames[-1] for run in runs if run.task == task) for task in groups}
    return Choices(
        frames=choose_frames(options.frames, groups),
        chosen=options.frames is not None,
        baseline=choose_baseline(options.baseline, list(dict.fromkeys(run.method for run in runs))),
        max_return=options.max_return,
        published=choose(options.published, last),
        unscored=without_scores(options.runs),
        command=printable(without_place([MADE_BY, *arguments]), longest=None),
        decisions=time_decisions(groups, options.trust) if options.time_actions else {},
    )


def report(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Read, check, compose, and only then write."""
    if importlib.util.find_spec("rliable") is None:
        raise InputError('rliable is not installed; run pip install ".[report]" -c constraints.txt')
    runs = read_runs(options.runs, names_of(options.name))
    earlier = earlier_files(options.out)
    made = compose(runs, choices_of(options, arguments, runs))
    write(options.out, made.files, earlier)
    show(made.scores, options.out / "report.html")


def main(arguments: Sequence[str] | None = None) -> int:
    """Console entry point."""
    warnings.filterwarnings("ignore", module=r"(torchrl|tensordict|lightning)\b.*")
    given = sys.argv[1:] if arguments is None else arguments
    try:
        report(parse(given), given)
    except InputError as error:
        print(printable_lines(f"{MADE_BY}: {error}"), file=sys.stderr)
        return BAD_INPUT
    return DONE
