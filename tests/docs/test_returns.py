"""Tests that returns and goals on the pages are the measured ones."""

import re

import pytest
from pages import DOCS, README, ROOT, rows_of

AGENTS = {"`DQS`": "`DQS`", "`SAC`": "`SAC`", "`SAC`, step size of DQS": "`SAC` at 1e-3"}


def test_the_readmes_table_agrees_with_the_results_page() -> None:
    results = rows_of(DOCS / "results.md", "Control Suite")
    shown = rows_of(README, "Results")
    assert len(shown) == 5
    for label, cells in shown.items():
        task, frames = re.fullmatch(r"(.+), ([\d,]+) frames", label).groups()  # type: ignore[union-attr]  # else it fails
        task = task.replace("mean of the three", "mean of the three tasks")
        column = f"{frames} frames" if frames == "20,000" else frames
        assert len(cells) == 4
        for agent, figure in cells.items():
            starts = f"{task}, {AGENTS.get(agent, agent)}"
            (row,) = (row for name, row in results.items() if re.fullmatch(re.escape(starts) + r"(, \w+ seeds)?", name))
            assert figure == row[column].partition(" ±")[0], f"{label}, {agent}"


def report_of(study: str) -> dict[tuple[str, str, str], tuple[float, float]]:
    """Returns mean and standard deviation over seeds, by task, frames and method, from a study's stored report."""
    text = (ROOT / "benchmarks" / "results" / study / "report" / "table.md").read_text()
    rows = re.findall(r"^\| ([a-z-]+) \| ([\d,]+) \| ([\w.-]+) \| \d+ \| ([\d.]+) \| ([\d.]+) \|", text, re.MULTILINE)
    return {(task, frames, method): (float(mean), float(std)) for task, frames, method, mean, std in rows}


def assert_rounded(cell: str, mean: float, std: float) -> None:
    """Asserts that a cell such as `960 ± 3 (958, 959, 964)` or `376` is the rounded mean and standard deviation."""
    shown = re.fullmatch(r"(\d+)(?: ± (\d+))?(?: \(.*\))?", cell)
    assert shown, cell
    assert abs(int(shown[1]) - mean) < 0.56, f"{cell}: {mean}"  # the mean is already rounded to a tenth
    assert shown[2] is None or abs(int(shown[2]) - std) < 0.56, f"{cell}: {std}"


SUITE = {"`DQS`": "dqs", "`SAC`": "sac", "`SAC` at 1e-3": "sac-1e-3", "`DQS` as published": "dqs-published"}
BASELINES = {
    "`DQS`": "dqs",
    "`DQS`, T a tenth of the standard deviation of Q throughout": "dqs-relative",
    "`SAC`, the same critic": "sac-same-critic",
    "`DQS`, plain critic, T annealed": "dqs-plain",
    "`SAC`, plain critic": "sac",
    "DQS as published, K = 100, 20 steps": "dqs-published",
    "`TD3`, plain critic": "td3",
    "`PPO`, plain critic": "ppo",
}
"""Names in the stored reports for the methods in the tables."""


def test_returns_on_the_suite_equal_the_measured_ones() -> None:
    report = report_of("dmc")
    rows = rows_of(DOCS / "results.md", "Control Suite")
    compared = set()
    for label, cells in rows.items():
        task, agent = label.split(", ")[:2]
        for column, frames in (("20,000 frames", "20,000"), ("40,000", "40,000"), ("100,000", "100,000")):
            if agent not in SUITE:  # a variant from another study
                continue
            key = (task, frames, SUITE[agent])
            if key in report:
                assert_rounded(cells[column], *report[key])
                compared.add(key)
            else:
                means = [mean for (_, *rest), (mean, _) in report.items() if tuple(rest) == key[1:]]
                assert task == "mean of the three tasks" and len(means) == 3
                assert_rounded(cells[column], sum(means) / 3, 0)
    assert compared == report.keys()


def test_returns_of_the_baselines_equal_the_measured_ones() -> None:
    report = report_of("baselines")
    rows = rows_of(DOCS / "results.md", "Baselines and methods on cartpole-swingup")
    assert rows.keys() == BASELINES.keys()
    for label, cells in rows.items():
        for column in ("10,000 frames", "25,000", "50,000"):
            assert_rounded(cells[column], *report["cartpole-swingup", column.split()[0], BASELINES[label]])


GOALS = {
    ("maze_temperature", "Four goals"): [
        "fixed", "snis", "plain", "fixed-high", "fixed-low", "annealed", "relative", "automatic", "sac",
    ],
    ("point_maze", "Two goals that are not observed"): ["soft", "soft-0.5", "plain-0.5", "sac-0.5"],
}  # fmt: skip
"""Variants of each sweep in the order of the table's rows."""


@pytest.mark.parametrize("study, heading", GOALS)
def test_counts_of_goals_equal_the_measured_ones(study: str, heading: str) -> None:
    lines = (ROOT / "benchmarks" / "results" / study / "table.md").read_text().splitlines()[2:]
    measured = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines}
    rows = rows_of(DOCS / "results.md", heading)
    assert [list(cells.values()) for cells in rows.values()] == [measured[name] for name in GOALS[study, heading]]
