"""No file that a command reads runs code, whatever the form of the payload.

PYTHONPATH=benchmarks python -m faults.payloads --jobs 2

Every form of `tests/checkpoint/payloads.py` is placed in every file of `tests/checkpoint/payload_files.py`: as the
whole file, or as a value at each place where a component or a text may be. A cell is a form in a file. It passes if
no payload ran and every read ended within the limit; its exit codes are counted. The cells of `control` show that each
payload runs when it is read unsafely.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/checkpoint"), str(ROOT / "benchmarks")]
sys.dont_write_bytecode = True
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # other libraries need it; this library must ignore it

import torch  # noqa: E402
from payload_files import TARGETS, Target, fitted, prepare  # noqa: E402
from payloads import FORMS, Form, ran  # noqa: E402
from provenance import about  # noqa: E402

LIMIT_S = 120
"""Time limit of one read in seconds, on a shared machine."""
WAIT_S = 0.05
"""Seconds to wait after each read for a process that a payload may have started."""
OUT = ROOT / "benchmarks" / "results" / "faults" / "payloads.json"


class Hang(BaseException):
    """Raised if a read does not end within the limit."""


def stop(number: int, frame: FrameType | None) -> None:
    raise Hang


def read(target: Target, content: bytes, place: Path) -> tuple[str, list[str]]:
    """Run a command that reads the content; returns how it ended and the problems."""
    target.file.parent.mkdir(parents=True, exist_ok=True)
    target.file.write_bytes(content)
    signal.alarm(LIMIT_S)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            code = target.command()
        ended = "read" if code is None else f"exit {code}"
    except Hang:
        ended = "hang"
    except BaseException as error:
        ended = f"raised {type(error).__name__}"
    finally:
        signal.alarm(0)
    time.sleep(WAIT_S)
    problems = [f"still at work after {LIMIT_S} s"] if ended == "hang" else []
    return ended, problems + (["the payload ran"] if ran(place) else [])


def cell(target: Target, form: Form, place: Path) -> dict[str, Any] | None:
    """Returns the row of a form in a file; None if the file cannot hold that form."""
    contents, start = target.contents(form, place), time.monotonic()
    if not contents:
        return None
    before = target.file.read_bytes() if target.file.exists() else None
    found = [read(target, content, place) for content in contents]
    target.file.unlink(missing_ok=True)
    if before is not None:
        target.file.write_bytes(before)
    problems = [problem for _, problems in found for problem in problems]
    row = {"cell": f"{target.name}/{form.name}", "passed": not problems, "how": "in process", "contents": len(contents)}
    row |= {"ended": dict(Counter(ended for ended, _ in found)), "seconds": round(time.monotonic() - start, 1)}
    return {**row, "problems": problems} if problems else row


def rows_of(name: str, prepared: Path) -> tuple[str, list[dict[str, Any]]]:
    """Returns the rows of a file, or of the control, in a copy of the prepared folder."""
    target = next((target for target in TARGETS if target.name == name), None)
    place = Path(tempfile.mkdtemp(prefix="payloads-")).resolve()
    shutil.copytree(prepared, place, dirs_exist_ok=True)
    os.chdir(place)
    sys.path.insert(0, str(place))
    signal.signal(signal.SIGALRM, stop)
    torch.set_num_threads(1)
    rows = [cell(target, form, place) if target else control(form, place) for form in FORMS]
    shutil.rmtree(place)
    return name, [row for row in rows if row]


def control(form: Form, place: Path) -> dict[str, Any] | None:
    """Returns the row of a payload that is read unsafely."""
    if form.live is None:
        return None
    try:
        form.live(form.make(place), place)
    except Exception as error:  # it raises after the payload ran
        assert error is not None
    found = ran(place)
    return {"cell": f"control/{form.name}", "passed": found, "how": "in process", "seconds": 0.0}


def write(rows: list[dict[str, Any]], file: Path) -> None:
    """Write counts, provenance and rows, one line each."""
    ended: Counter[str] = Counter()
    for row in rows:
        ended.update(row.get("ended", {}))
    head = {
        "study": "payloads",
        "guarantee": (__doc__ or "").splitlines()[0],
        "cells": len(rows),
        "passed": sum(row["passed"] for row in rows),
        "forms": len(FORMS),
        "files": len(TARGETS),
        "contents": sum(row.get("contents", 0) for row in rows),
        "ended": dict(ended.most_common()),
        "forked": len(rows),
        "processes": 0,
        **about(),
        "command": "PYTHONPATH=benchmarks python -m faults.payloads",
        "cores": os.cpu_count(),
    }
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n{lines}\n ]\n}}\n')


def main() -> int:
    """Run all cells; returns 1 if one has not passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="files at a time")
    parser.add_argument("--only", default="", help="files whose name holds this; nothing is written without --out")
    parser.add_argument("--again", action="store_true", help="files that have rows too; else only those that have none")
    parser.add_argument("--out", type=Path, help=f"default: {OUT.relative_to(ROOT)}")
    options = parser.parse_args()
    out = options.out.resolve() if options.out else None if options.only else OUT
    known = json.loads(out.read_text())["rows"] if out and out.exists() and not options.again else []
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in known:
        rows.setdefault(row["cell"].partition("/")[0], []).append(row)
    names = ["control", *(target.name for target in TARGETS)]
    todo = [name for name in names if options.only in name and name not in rows]
    prepared = prepare_all()
    with multiprocessing.get_context("fork").Pool(options.jobs, maxtasksperchild=1) as pool:
        for name, found in pool.imap_unordered(partial(rows_of, prepared=prepared), todo, chunksize=1):
            rows[name] = found
            for row in found:
                print(f"{row['cell']}: {row.get('ended', '')} {'; '.join(row.get('problems', []))}", flush=True)
            if out:
                write([row for name in names for row in rows.get(name, [])], out)
    shutil.rmtree(prepared)
    failed = [row["cell"] for name in todo for row in rows[name] if not row["passed"]]
    print(
        f"{sum(len(rows[name]) for name in todo) - len(failed)} cells passed, {len(failed)} failed", *failed, sep="\n"
    )
    return int(bool(failed))


def prepare_all() -> Path:
    """Make a folder with a valid file of every kind, and a run in `fit` that can be continued."""
    place = Path(tempfile.mkdtemp(prefix="payloads-")).resolve()
    prepare(place)
    os.chdir(place)
    if fitted("--config=base.yaml")():
        raise RuntimeError("the run that is to be continued did not end with exit code 0")
    (place / "new").rename(place / "fit")
    os.chdir(ROOT)
    return place


if __name__ == "__main__":
    sys.exit(main())
