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

from dqs_lightning.cli.errors import DONE, InputError, refusing, reported
from dqs_lightning.cli.files import existing_folder, read_json
from dqs_lightning.cli.report.runs import read_runs
from dqs_lightning.sharing.text import printable

SUMMARY, MADE_BY = "summary.json", "dqs-report"
UNFINISHED = ".dqs-report-"
"""Prefix of the folder of a report that is being written."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="dqs-report",
        description="Curves, tables and a comparison of runs with intervals over seeds, on one page. A run's task is "
        "its environment; its method is the variant of a sweep, the folder above the time in runs/TASK/AGENT/TIME, or "
        "the agent, as the run was started. Exit codes: 0 done, 2 bad input.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", type=Path, nargs="+", help="run directories, kept studies, or folders of them")
    parser.add_argument("--out", type=Path, required=True, help="folder for the report: new, empty, or a report's")
    parser.add_argument("--frames", type=int, nargs="+", help="of the tables (default: the last that all runs reached)")
    parser.add_argument("--baseline", help="method to compare with (default: sac, or the first)")
    parser.add_argument("--max-return", type=float, default=1000.0, help="what returns are divided by (default 1000)")
    parser.add_argument("--published", nargs="+", metavar="NAME", help="published methods to draw, or none")
    parser.add_argument("--time-actions", action="store_true", help="time a decision of each method's checkpoint, now")
    names = "call the runs at and below a path so; may be repeated"
    parser.add_argument("--name", action="append", default=[], metavar="PATH=[TASK/]METHOD", help=names)
    trust = "a further package whose classes the checkpoints of --time-actions may name; may be repeated"
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help=trust)
    options = parser.parse_args(arguments)
    for frames in options.frames or []:
        if frames < 1:
            parser.error(f"--frames={frames}: must be >= 1")
    if not 1e-9 <= options.max_return <= 1e100:
        parser.error(f"--max-return={options.max_return}: must be 1e-09 to 1e+100")
    return options


def names_of(given: Sequence[str]) -> dict[Path, str]:
    """Returns METHOD or TASK/METHOD by path, of texts PATH=NAME."""
    names = {}
    for text in given:
        # The last = separates them, since a run's folder may be called seed=0.
        if not (found := re.fullmatch(r"(.+)=([^/=]+(?:/[^/=]+)?)", text, re.DOTALL)):
            raise InputError(f"--name {text}: must be PATH=METHOD or PATH=TASK/METHOD")
        names[Path(found[1])] = found[2]
    return names


def earlier_files(out: Path) -> set[str]:
    """Returns the names of the files in `out`; refuses files that are not an earlier report's, which would be lost."""
    existing_folder(f"--out={out}", out)
    there = {name for name in os.listdir(out) if not name.startswith(UNFINISHED)} if out.exists() else set()
    try:
        summary = read_json(out / SUMMARY)
        foreign = there - set(summary["files"] if summary["made_by"] == MADE_BY else ())
    except (InputError, KeyError, TypeError):
        foreign = there
    if foreign:
        raise InputError(
            f"--out={out}: holds {min(foreign)}, which is no file of an earlier report; allowed is a new folder, an "
            "empty one, or one with nothing but a report"
        )
    return there


def write(out: Path, files: dict[str, bytes], earlier: set[str]) -> None:
    """Writes the whole report beside an earlier one, so that a full disk leaves that, and then replaces it."""
    with refusing(f"--out={out}: ", OSError):
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


def report(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Reads the runs, composes the report, and only then writes it."""
    if not all(importlib.util.find_spec(name) for name in ("rliable", "pandas", "jinja2")):
        raise InputError('rliable or pandas is not installed; run pip install "dqs-lightning[report]"')
    runs = read_runs(options.runs, names_of(options.name))
    earlier = earlier_files(options.out)
    with refusing("matplotlibrc: Matplotlib cannot read its settings: ", ValueError):
        importlib.import_module("matplotlib")
    # Pandas and what needs it: bad paths are refused before this is imported.
    from dqs_lightning.cli.report.measure import measure
    from dqs_lightning.cli.report.page import compose
    from dqs_lightning.cli.report.tables import tables_of

    made = measure(runs, options, [MADE_BY, *arguments])
    write(options.out, compose(made), earlier)
    print(next(table.cells.to_string(index=False) for table in tables_of(made) if table.title == "Returns"))
    print(printable(options.out / "report.html", longest=None))


@reported(MADE_BY)
def main(arguments: Sequence[str] | None = None) -> int:
    """Console entry point."""
    warnings.filterwarnings("ignore", module=r"(torchrl|tensordict|lightning|scipy)\b.*")
    given = sys.argv[1:] if arguments is None else arguments
    report(parse(given), given)
    return DONE
