"""The search section of a sweep file: what is refused before anything starts, and what a dry run prints."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dqs_lightning.cli import fit, sweep
from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.sweep_plan import read_sweep, search_of

CONFIGS = Path(__file__).parents[2] / "configs"
SPACE: dict[str, Any] = {
    "model.critic_lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "data.batch_size": {"low": 64, "high": 512, "step": 64},
    "model.noise_schedule": {"choices": ["Geometric", "Cosine"]},
}
GOOD: dict[str, Any] = {"parameters": SPACE, "trials": 5, "random_trials": 4, "prune": True, "seed": 3}


def written(file: Path, search: Any = None, **further: Any) -> Path:
    content = {"config": "pole.yaml", "seeds": [0, 1], "search": GOOD if search is None else search, **further}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def space(**options: Any) -> dict[str, Any]:
    return {"parameters": {"model.tau": options}}


BAD: dict[str, tuple[Any, str]] = {
    "no mapping": ([1], r"search=\[1\]: must hold parameters, trials"),
    "unknown key": ({**GOOD, "trails": 3}, r"search.trails: no such key; allowed are .*\nDid you mean trials\?"),
    "no parameters": ({"trials": 3}, "search.parameters: must be there"),
    "empty parameters": ({"parameters": {}}, "search.parameters={}: must be one or more"),
    "a parameter as a list": (
        {"parameters": {"a": [1, 2]}},
        r"parameters.a=\[1, 2\]: must be {low: A, high: B}",
    ),
    "a name with dashes": ({"parameters": {"--a": {}}}, "search.parameters.--a: must be an option of dqs-fit without"),
    "an unknown key of a range": (space(low=0, hihg=1), r"model.tau.hihg: no such key; .*\nDid you mean high\?"),
    "no high": (space(low=0), "model.tau.high: must be there, or choices"),
    "text": (space(low="a", high=1), "model.tau.low=a: must be a number"),
    "a truth": (space(low=False, high=1), "model.tau.low=False: must be a number"),
    "infinite": (space(low=0, high=float("inf")), "model.tau.high=inf: must be a number"),
    "not a number": (space(low=float("nan"), high=1.0), "model.tau.low=nan: must be a number"),
    "a long integer": (space(low=0, high=10**400), r"model.tau.high=10+...: must be a number"),
    "low above high": (space(low=2, high=1), "model.tau: low=2 must be < high=1"),
    "low is high": (space(low=1, high=1.0), "model.tau: low=1 must be < high=1.0"),
    "log of zero": (space(low=0, high=1.0, log=True), "model.tau.low=0.0: must be > 0 where log is true"),
    "log as a number": (space(low=1, high=2, log=1), "model.tau.log=1: must be true or false"),
    "log and step": (space(low=1, high=3, log=True, step=1), "model.tau.step=1: must be left out where log is true"),
    "a step that does not divide": (space(low=0, high=1.0, step=0.3), "model.tau.step=0.3: must be > 0 and divide"),
    "no step": (space(low=0, high=10, step=0), "model.tau.step=0: must be > 0 and divide"),
    "a broken step": (space(low=0, high=10, step=0.5), "model.tau.step=0.5: must be a whole number, as low and high"),
    "no choices": (space(choices=[]), r"model.tau.choices=\[\]: must be a list of one or more"),
    "one choice": (space(choices="Cosine"), "model.tau.choices=Cosine: must be a list of one or more"),
    "a choice twice": (space(choices=[1, "1"]), "model.tau.choices: 1 is given twice"),
    "choices and low": (space(choices=[1], low=0), "model.tau: has choices and low; must be one of the two"),
    "the seed": (
        {"parameters": {"seed_everything": {"low": 0, "high": 9}}},
        "parameters.seed_everything: a sweep may not",
    ),
    "no trials": ({**GOOD, "trials": 0}, "search.trials=0: must be a whole number from 1"),
    "half a trial": ({**GOOD, "trials": 1.5}, "search.trials=1.5: must be a whole number"),
    "objective": ({**GOOD, "objective": "best"}, "search.objective=best: must be one of final, mean"),
    "prune as text": ({**GOOD, "prune": "median"}, "search.prune=median: must be true, false, or keys startup_trials"),
    "prune's key": ({**GOOD, "prune": {"warmup": 3}}, "search.prune.warmup: no such key; allowed are startup_trials"),
    "prune at once": (
        {**GOOD, "prune": {"startup_trials": 0}},
        "prune.startup_trials=0: must be a whole number",
    ),
    "seed": ({**GOOD, "seed": -1}, "search.seed=-1: must be a whole number from 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_invalid_search_is_refused_and_nothing_is_written(
    file: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    search, message = BAD[case]
    with pytest.raises(InputError, match=message):
        read_sweep(written(file, search))
    assert sweep.main([str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"dqs-sweep: {file}: search") and len(err.splitlines()) <= 5
    assert os.listdir() == []


def test_a_parameter_cannot_be_an_override_too(file: Path) -> None:
    with pytest.raises(InputError, match=r"search.parameters.data.batch_size: is in overrides too"):
        read_sweep(written(file, overrides=["data.batch_size=32"]))


def test_whole_numbers_stay_whole_and_mixed_ends_are_floats(file: Path) -> None:
    search = {
        "parameters": {"a": {"low": 1, "high": 3}, "b": {"low": 1, "high": 3.5}, "c": {"choices": [[1, 2], None]}}
    }
    found = search_of(read_sweep(written(file, search))).space
    assert [str(options) for options in found.values()] == [
        "whole numbers, 1 to 3",
        "1.0 to 3.5",
        "one of [1, 2], null",
    ]


REFUSED = {
    "unknown option": ({"model.critic_rl": {"low": 0.1, "high": 1.0}}, "no such option", "--model.critic_lr"),
    "low end": (
        {"model.critic_lr": {"low": -1.0, "high": 1.0}},
        "model.critic_lr=-1.0: must be a finite number > 0",
        "",
    ),
    "high end": ({"model.tau": {"low": 0.5, "high": 1.5}}, "model.tau=1.5: must be", ""),
    "second choice": (
        {"model.noise_schedule": {"choices": ["Cosine", "Cosin"]}},
        "model.noise_schedule=Cosin: no such component",
        "Cosine",
    ),
    "type": ({"data.batch_size": {"low": 1.5, "high": 2.5}}, "data.batch_size=1.5: must be", ""),
    "missing file": ({"config": {"choices": ["pole.yaml", "pol.yaml"]}}, "pol.yaml: no such file", ""),
}


@pytest.mark.parametrize("case", REFUSED)
def test_ends_and_choices_that_dqs_fit_would_refuse_are_refused_before_any_run(
    file: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna")
    parameters, message, meant = REFUSED[case]
    assert sweep.main([str(written(file, {"parameters": parameters}))]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"dqs-sweep: {file}: ") and message in err, err
    assert meant in err and len(err.splitlines()) <= 5 and os.listdir() == []


def test_a_missing_optuna_is_named_with_the_command_to_install_it(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = sweep.importlib.util.find_spec
    monkeypatch.setattr(
        sweep.importlib.util, "find_spec", lambda name, *rest: None if name == "optuna" else find(name, *rest)
    )
    for options in ([], ["--dry-run"]):
        assert sweep.main([str(written(file)), *options]) == 2
        assert 'Optuna is not installed; run pip install "dqs-lightning[sweep]"' in capsys.readouterr().err
    assert os.listdir() == []


def test_a_dry_run_prints_the_space_and_the_commands_of_the_random_trials(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    assert sweep.main([str(written(file)), "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and os.listdir() == []
    assert out.startswith("# trials: 5, runs of each: 2; parameters:\n")
    assert out.endswith("\n# trials whose parameters depend on returns: 1\n")
    assert "#   data.batch_size: whole numbers, 64 to 512, step 64\n" in out
    commands = [shlex.split(line) for line in out.splitlines() if line.startswith("dqs-fit")]
    assert [command[-2].split("/", 1)[1].rpartition("pole/")[2] for command in commands] == [
        f"trial-00{trial}/seed={seed}" for trial in range(4) for seed in (0, 1)
    ]
    assert commands[0][3:6] == commands[1][3:6] != commands[2][3:6]  # a trial's runs have the same parameters
    assert sweep.main([str(file), "--dry-run"]) == 0 and capsys.readouterr().out == out
    assert sweep.main([str(written(file, {**GOOD, "seed": 4})), "--dry-run"]) == 0 and capsys.readouterr().out != out
    monkeypatch.setattr(sys, "argv", [*commands[-1], "--print_config"])
    with pytest.raises(SystemExit) as stop:
        fit.main()
    config = yaml.safe_load(capsys.readouterr().out)
    assert stop.value.code == 0 and config["data"]["batch_size"] in range(64, 513, 64)


@pytest.mark.parametrize("path", sorted((CONFIGS / "sweeps").glob("search_*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_searches_can_be_started(path: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    assert sweep.main([str(path), "--dry-run"]) == 0, capsys.readouterr().err
    assert "dqs-fit" in capsys.readouterr().out
