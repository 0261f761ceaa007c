"""Tests of fault studies: a row is stored for each cell, a study can be continued, and the docs show its counts."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import study, tables, usage
from faults.study import Cell, Lab, Outcome, main


def cells(brief: bool) -> list[Cell]:
    return [Cell(f"number/{n}", {"n": n}) for n in range(2 if brief else 4)]


def run(monkeypatch: pytest.MonkeyPatch, check: Any, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["study", *options])
    return main("numbers", "Numbers are small.\n\nMore words.\n", cells, check)


def test_rows_are_stored_and_only_missing_or_failed_cells_are_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, ran, limit = tmp_path / "numbers.json", [], 2

    def check(lab: Lab, place: Path, settings: dict[str, Any]) -> Outcome:
        ran.append(settings["n"])
        if settings["n"] == 1:
            raise KeyError("a fault of the study")
        return Outcome([] if settings["n"] < limit else ["too large"], {"seen": settings["n"]})

    assert run(monkeypatch, check, f"--out={out}", "--only=number/[12]") == 1
    assert run(monkeypatch, check, f"--out={out}") == 1
    assert ran == [1, 2, 0, 3]
    found = json.loads(out.read_text())
    assert [row["cell"] for row in found["rows"]] == ["number/0", "number/1", "number/2", "number/3"]
    assert [row["passed"] for row in found["rows"]] == [True, False, False, False]
    assert "KeyError" in found["rows"][1]["problems"][0] and found["rows"][2]["problems"] == ["too large"]
    assert (found["guarantee"], found["cells"], found["passed"]) == ("Numbers are small.", 4, 1)
    assert {"commit", "torch", "machine", "cores", "command"} <= set(found)
    ran.clear()
    limit = 3
    run(monkeypatch, check, f"--out={out}", "--failed")
    assert ran == [1, 2, 3] and json.loads(out.read_text())["passed"] == 2


def test_the_table_has_a_row_for_each_study_and_replaces_the_old_one(tmp_path: Path) -> None:
    rows = [{"cell": "a", "passed": True, "how": "fork"}, {"cell": "b", "passed": False, "how": "process"}]
    study.write(tmp_path / "kills.json", "kills", "Kills lose nothing.", rows, "python -m faults.kills")
    table = tables.table(tmp_path)
    assert table.splitlines()[2:] == ["| Kills lose nothing | 2 | 1 | 1 | `python -m faults.kills` |"]
    page = f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n"
    assert tables.with_table(page, table) == f"before\n{tables.BEGIN}\n\n{table}\n\n{tables.END}\nafter\n"
    with pytest.raises(ValueError, match="no place"):
        tables.with_table("a page", table)


def test_the_page_shows_the_stored_results() -> None:
    page = tables.PAGE.read_text()
    assert tables.with_table(page, tables.table()) == page


def test_growth_is_detected_in_a_trend_and_not_in_noise() -> None:
    generator = np.random.default_rng(0)
    steps = np.arange(40) * 5_000.0
    noise = generator.normal(0, 1, 40)
    flat, growing = usage.slope(steps, 100 + noise), usage.slope(steps, 100 + 3 * steps / 100_000 + noise)
    assert not flat.grows(0.5) and growing.grows(0.5) and not growing.grows(10)
    assert abs(growing.per_100k - 3) < 3 * growing.error
    walk = usage.slope(steps, 100 + np.cumsum(noise))
    assert walk.error > 3 * flat.error
    assert usage.slope(steps, np.full(40, 7.0)) == (0.0, 0.0)


def test_open_files_and_threads_of_a_process_are_counted(tmp_path: Path) -> None:
    before = usage.usage([os.getpid()])
    files = [(tmp_path / str(n)).open("w") for n in range(5)]
    after = usage.usage([os.getpid()])
    for file in files:
        file.close()
    assert after.files == before.files + 5
    assert before.memory_mib > 10 and before.threads >= 1
