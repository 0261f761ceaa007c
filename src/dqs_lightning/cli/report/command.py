"""`dqs-report`: curves, tables and a comparison of runs with intervals over seeds, on one page."""

import argparse
import importlib.util
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MUJOCO_GL", "disabled")
os.environ.setdefault("MPLBACKEND", "agg")  # a matplotlibrc in the working directory could name any module

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from dqs_lightning.cli.errors import BAD_INPUT, DONE, InputError
from dqs_lightning.cli.escape import printable, printable_lines
from dqs_lightning.cli.reading import read_json
from dqs_lightning.cli.report.runs import read_runs
from dqs_lightning.cli.writing import existing_folder

if TYPE_CHECKING:
    import pandas as pd

SUMMARY, MADE_BY = "summary.json", "dqs-report"
MAX_RETURNS = (1e-9, 1e100)
"""Least and largest value of --max-return."""
UNFINISHED = ".dqs-report-"
"""How the folder of a report that is being written begins."""


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
    parser.add_argument("--published", nargs="+", metavar="NAME", help="published methods to draw, or none")
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


def names_of(given: Sequence[str]) -> dict[Path, str]:
    """Return METHOD or TASK/METHOD by path.

    Raises:
        InputError: when one is not PATH=METHOD or PATH=TASK/METHOD.
    """
    names = {}
    for text in given:
        path, _, name = text.rpartition("=")  # a run's folder may be called seed=0
        if not path or not re.fullmatch(r"[^/]+(/[^/]+)?", name):
            raise InputError(f"--name {text}: must be PATH=METHOD or PATH=TASK/METHOD")
        names[Path(path)] = name
    return names


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


def show(table: "pd.DataFrame", page: Path) -> None:
    """Print the returns, and where the page is."""
    console = Console(width=None if sys.stdout.isatty() else 200)
    shown = RichTable(*table, box=None)
    for row in table.itertuples(index=False):
        shown.add_row(*(Text(cell) for cell in row))
    console.print(shown)
    console.print(printable(page, longest=None), markup=False, highlight=False, soft_wrap=True)


def report(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Read, check, compose, and only then write."""
    if not all(importlib.util.find_spec(name) for name in ("rliable", "pandas", "jinja2")):
        raise InputError('rliable or pandas is not installed; run pip install ".[report]" -c constraints.txt')
    runs = read_runs(options.runs, names_of(options.name))
    earlier = earlier_files(options.out)
    # Pandas and what needs it: bad paths are refused before this is imported.
    from dqs_lightning.cli.report.measure import measure
    from dqs_lightning.cli.report.page import compose
    from dqs_lightning.cli.report.tables import tables_of

    made = measure(runs, options, [MADE_BY, *arguments])
    write(options.out, compose(made), earlier)
    show(next(table.cells for table in tables_of(made) if table.title == "Returns"), options.out / "report.html")


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
