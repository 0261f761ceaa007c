"""Fuzz tests of configurations: a few mutated and misspelt ones; `nox -s fuzz` tries a thousand of each."""

from pathlib import Path

import pytest
from faults.configurations import LEAST_RATE, attempt, count_misspellings, count_mutations, edited
from hypothesis import given
from hypothesis import strategies as st

EXAMPLES = 40
WALKER = str(Path(__file__).parents[2] / "configs" / "walker.yaml")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_mutated_configurations_are_accepted_or_refused() -> None:
    counts, problems = count_mutations(EXAMPLES)
    assert not problems, problems[0]["made"] + "\n" + problems[0]["said"]
    assert sum(counts.values()) == EXAMPLES and counts.keys() <= {"accepted", "2"}


@pytest.mark.slow
def test_misspellings_are_refused_with_the_right_name() -> None:
    counts, problems, missed = count_misspellings(EXAMPLES)
    assert not problems, problems[0]
    assert counts["2"] == EXAMPLES and counts["right suggestion"] >= LEAST_RATE * EXAMPLES, missed


def test_problems_of_a_command_are_recognised() -> None:
    """Accepted configurations, refusals and files that are left behind are classified correctly."""
    assert attempt("--config", WALKER).code == "accepted" and attempt("--config", WALKER).problem == ""
    refused = attempt("--config", WALKER, "--data.num_envs=0")
    assert refused.code == 2 and refused.problem == "" and "data.num_envs=0" in refused.text
    assert refused._replace(left=["config.yaml"]).problem == "files written"
    assert refused._replace(code="traceback").problem == "traceback"
    assert refused._replace(text="dqs-fit: a\n" + "b\n" * 5).problem == "message too long, or none"
    assert refused._replace(text="usage: x").problem == "message too long, or none"


@given(st.randoms(), st.sampled_from(["tau", "id", "class_path", "DQS"]))
def test_an_edit_changes_a_name(rng: object, name: str) -> None:
    wrong = edited(rng, name)
    assert wrong.lower() != name.lower() and abs(len(wrong) - len(name)) <= 1
