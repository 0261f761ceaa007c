"""Writes the counts of all studies into docs/guarantees.md, between two comments.

PYTHONPATH=benchmarks python -m faults.tables
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from faults.runs import ROOT
from faults.study import RESULTS

PAGE = ROOT / "docs" / "guarantees.md"
BEGIN, END = "<!-- faults: written by benchmarks/faults/tables.py -->", "<!-- end of faults -->"
STUDIES = ("kills", "signals", "resume", "nonfinite", "environments", "payloads", "configurations", "soak")


def table(results: Path = RESULTS) -> str:
    """Makes a table with a row for each study with results: guarantee, cells, passed, real processes, command."""
    lines = ["| guarantee | cells | passed | real processes | command |", "|---|---:|---:|---:|---|"]
    for study in STUDIES:
        if (file := results / f"{study}.json").exists():
            found: dict[str, Any] = json.loads(file.read_text())
            command = f"`python -m faults.{study}`"
            counts = f"{found['cells']} | {found['passed']} | {found['processes']}"
            lines.append(f"| {found['guarantee'].rstrip('.')} | {counts} | {command} |")
    return "\n".join(lines)


def with_table(page: str, content: str) -> str:
    """Returns the page with new content between its two comments.

    Raises:
        ValueError: if the page does not have them.
    """
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"no place for the table: the page lacks {BEGIN} and {END}")
    return pattern.sub(lambda _: f"{BEGIN}\n\n{content}\n\n{END}", page)


def main() -> int:
    """Write the page; returns 1 if a cell of a study has not passed."""
    PAGE.write_text(with_table(PAGE.read_text(), table()))
    counts = [json.loads(file.read_text()) for file in RESULTS.glob("*.json")]
    return int(any(found["passed"] < found["cells"] for found in counts))


if __name__ == "__main__":
    sys.exit(main())
