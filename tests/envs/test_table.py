"""Tests of the table of environments: no row failed, and the page shows every row."""

import csv
from pathlib import Path

import pytest
from environments_page import FIELDS, page

from dqs_lightning.envs.dm_control import NOT_INSTALLED

ROOT = Path(__file__).parents[2]
Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def rows() -> Rows:
    with (ROOT / "benchmarks" / "results" / "environments.csv").open() as file:
        return list(csv.DictReader(file))


def test_each_environment_trains_or_is_refused_with_its_reason(rows: Rows) -> None:
    suite = pytest.importorskip("dm_control.suite", reason=NOT_INSTALLED)
    names = [row["environment"] for row in rows]
    assert len(set(names)) == len(names) and {f"{domain}-{task}" for domain, task in suite.ALL_TASKS} <= set(names)
    assert {row["outcome"] for row in rows} <= {"trains", "refused", "discrete"}
    for row in rows:
        assert "Traceback" not in row["reason"]
        if row["outcome"] == "trains":
            assert int(row["frames"]) >= 2_000 and int(row["updates"]) > 50 and float(row["return"]) < 1e6, row
        else:
            assert row["reason"] and not row["updates"], row


def test_the_page_shows_every_row(rows: Rows) -> None:
    text = (ROOT / "docs" / "environments.md").read_text().splitlines()
    shown = [row for row in rows if row["outcome"] != "discrete"]
    for line in page(rows, len(rows)).splitlines():
        assert not line.startswith("| ") or line in text, line
    assert sum(line.startswith("| ") for line in text) >= len(shown)


def test_a_page_counts_outcomes_and_escapes_reasons() -> None:
    row = dict.fromkeys(FIELDS, "") | {"suite": "gymnasium", "environment": "A-v0", "outcome": "refused"}
    other = row | {"environment": "B-v0", "outcome": "discrete", "reason": "Discrete"}
    text = page([row | {"reason": "a|b<c"}, other], tasks=5)
    assert "Of 1 environments, 1 refused." in text and "3 environments have not been run yet." in text
    assert r"a\|b&lt;c" in text and "actions are discrete: B-v0." in text and "| B-v0" not in text
