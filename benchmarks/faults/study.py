"""Runs the cells of a study and stores a row of each in a JSON file, so that an interrupted study can be continued."""

import argparse
import fnmatch
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from provenance import about

from faults.runs import FORKED, ROOT, Launcher

RESULTS = ROOT / "benchmarks" / "results" / "faults"


class Cell(NamedTuple):
    """One case of a study.

    Attributes:
        name: unique name in the study, of parts separated by slashes.
        settings: arguments of the study's check.
    """

    name: str
    settings: dict[str, Any]


class Outcome(NamedTuple):
    """The outcome of a cell, which passes if there are no problems.

    Attributes:
        problems: differences from the expected outcome, one line each.
        observed: values for the row.
        how: whether its command was forked or a real process.
    """

    problems: list[str]
    observed: dict[str, Any]
    how: str = FORKED


class Lab:
    """The resources of a study: the launcher, a working folder, and uninterrupted reference runs."""

    def __init__(self, launcher: Launcher, work: Path) -> None:
        self.launcher, self.work = launcher, work
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}

    def place(self, name: str) -> Path:
        """Makes an empty folder for a cell."""
        folder = self.work / name.replace("/", "__").replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def reference(self, name: str, argv: Sequence[str], ranks: int = 1, **settings: Any) -> Path:
        """Returns the folder of an uninterrupted run, made once for each name; settings as for `Launcher.run`.

        Raises:
            RuntimeError: if it does not end with exit code 0.
        """
        folder = self.work / "references" / name.replace("/", "__")
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            if not (folder / "complete").exists():
                shutil.rmtree(folder, ignore_errors=True)
                ended, err = self.launcher.run(argv, folder, ranks=ranks, **settings)
                if ended.code != 0 or ended.left:
                    raise RuntimeError(f"the uninterrupted run {name} ended with {ended}: {err[-800:]}")
                (folder / "complete").touch()
        return folder


Check = Callable[[Lab, Path, dict[str, Any]], Outcome]


def run_cell(lab: Lab, check: Check, cell: Cell) -> dict[str, Any]:
    """Run a cell and return its row. The folder of a cell that passes is removed."""
    begun, place = time.monotonic(), lab.place(cell.name)
    try:
        outcome = check(lab, place, cell.settings)
    except Exception as error:
        outcome = Outcome([f"{type(error).__name__}: {error}"[:1200]], {})
    if not outcome.problems:
        shutil.rmtree(place, ignore_errors=True)
    return {
        "cell": cell.name,
        "passed": not outcome.problems,
        "how": outcome.how,
        "seconds": round(time.monotonic() - begun, 1),
        **outcome.observed,
        **({"problems": outcome.problems} if outcome.problems else {}),
    }


def write(file: Path, study: str, doc: str, rows: Sequence[dict[str, Any]], command: str) -> None:
    """Write a study's file: counts, provenance and rows, one line each."""
    head = {
        "study": study,
        "guarantee": doc.strip().splitlines()[0],
        "cells": len(rows),
        "passed": sum(row["passed"] for row in rows),
        "forked": sum(row["how"] == FORKED for row in rows),
        "processes": sum(row["how"] != FORKED for row in rows),
        **about(),
        "command": command,
        "cores": os.cpu_count(),
    }
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    text = json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n{lines}\n ]\n}}\n'
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(file)


def main(study: str, doc: str, cells: Callable[[bool], list[Cell]], check: Check) -> int:
    """Run the command line of a study; returns 1 if a cell did not pass.

    Args:
        study: name of the results file.
        doc: docstring whose first line states the guarantee.
        cells: returns the cells, or with True those of the brief version.
        check: runs a cell.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brief", action="store_true", help="a few cells; nothing is written without --out")
    parser.add_argument("--only", default="*", help="cells whose name matches this pattern, such as '2 ranks/*'")
    parser.add_argument(
        "--again", action="store_true", help="cells that have a row too; else only those that have none"
    )
    parser.add_argument("--failed", action="store_true", help="cells whose row says that they did not pass, once more")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--out", type=Path, help=f"default: {RESULTS.relative_to(ROOT)}/{study}.json")
    parser.add_argument("--work", type=Path, help="folder of the runs; default: a temporary one")
    options = parser.parse_args()
    out = options.out or (None if options.brief else RESULTS / f"{study}.json")
    known = json.loads(out.read_text())["rows"] if out and out.exists() else []
    rows = {row["cell"]: row for row in known}
    every = cells(options.brief)
    order = [cell.name for cell in every]
    todo = [cell for cell in every if fnmatch.fnmatch(cell.name, options.only)]
    if not options.again:
        todo = [c for c in todo if c.name not in rows or (options.failed and not rows[c.name]["passed"])]
    work = options.work or Path(tempfile.mkdtemp(prefix=f"{study}-"))
    launcher = Launcher()
    lab = Lab(launcher, work.resolve())
    shown = [f"PYTHONPATH=benchmarks python -m faults.{study}", *(["--brief"] if options.brief else [])]
    with ThreadPoolExecutor(options.jobs) as pool:
        for number, job in enumerate(as_completed([pool.submit(run_cell, lab, check, cell) for cell in todo]), 1):
            row = job.result()
            rows[row["cell"]] = row
            outcome = "passed" if row["passed"] else "FAILED " + "; ".join(row["problems"])[:400]
            print(f"{number}/{len(todo)} {row['cell']}: {outcome} ({row['seconds']} s)", flush=True)
            if out:
                kept = [rows[name] for name in order if name in rows]
                write(out, study, doc, kept, " ".join(shown))
    launcher.close()
    failed = [cell.name for cell in todo if not rows[cell.name]["passed"]]
    print(
        f"{len(todo) - len(failed)} of {len(todo)} cells passed; runs are in {work}"
        if failed
        else f"{len(todo)} cells passed"
    )
    if not failed and not options.work:
        shutil.rmtree(work, ignore_errors=True)
    return 1 if failed else 0
