"""Regression test of learning: compares new seeds on the maze with four goals with the stored results.

`nox -s learning` trains them, which takes up to ten minutes on one core. The other tests only check the comparison.
"""

import csv
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from scipy import stats

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "benchmarks" / "results" / "maze_temperature" / "goals.csv"
SEEDS = (100, 101, 102)
ROWS = 3
"""Number of evaluations that are compared: those at 4,000, 8,000 and 12,000 frames, during learning."""
LEVEL = 0.005
"""Significance level for each of two quantities: a change without effect fails in 1 % of runs."""

QUANTITIES = ("success", "goal_entropy")
Learned = dict[str, list[float]]
"""For each quantity, its mean over the evaluations of each seed."""


def learned(runs: list[list[dict[str, Any]]]) -> Learned:
    assert runs and all(len(run) >= ROWS for run in runs)
    return {name: [fmean(float(row[name]) for row in run[:ROWS]) for run in runs] for name in QUANTITIES}


def kept(variant: str) -> Learned:
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with KEPT.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["method"] == variant:
                runs[row["seed"]].append(row)
    return learned(list(runs.values()))


def worse(new: Learned, reference: Learned) -> list[str]:
    """Returns the quantities that are significantly lower than in the reference, by Welch's t test."""
    return [
        name
        for name in reference
        if stats.ttest_ind(new[name], reference[name], equal_var=False, alternative="less").pvalue < LEVEL
    ]


@pytest.mark.parametrize(("variant", "expected"), [("fixed-low", ["goal_entropy"]), ("annealed", ["success"])])
def test_the_comparison_detects_worse_variants(variant: str, expected: list[str]) -> None:
    assert worse(kept(variant), kept("fixed")) == expected


def test_the_comparison_accepts_other_seeds_and_equal_variants() -> None:
    whole = kept("fixed")
    first, others = ({name: values[part] for name, values in whole.items()} for part in (slice(2), slice(2, None)))
    assert worse(first, others) == worse(others, first) == worse(kept("snis"), whole) == []


@pytest.mark.learning
@pytest.mark.timeout(3000)
def test_learning_on_the_default_maze_is_on_par_with_the_stored_results(tmp_path: Path) -> None:
    runs = [tmp_path / str(seed) for seed in SEEDS]
    for seed, run in zip(SEEDS, runs, strict=True):
        subprocess.run(
            [
                sys.executable, "-m", "dqs_lightning.cli.fit", f"--config={ROOT / 'configs' / 'maze.yaml'}",
                f"--run_dir={run}", f"--seed_everything={seed}", "--data.total_frames=12_000",
                "--evaluate.every_frames=12_000", "--trainer.callbacks=GoalCoverage",
                "--trainer.callbacks.every_frames=4_000", "--trainer.accelerator=cpu",
            ],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    counts = [[json.loads(line) for line in (run / "goals.jsonl").read_text().splitlines()] for run in runs]
    new, reference = learned(counts), kept("fixed")
    assert not worse(new, reference), (new, reference)
