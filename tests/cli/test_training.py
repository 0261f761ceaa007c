"""The callbacks of a run: which are added, their order, and how the safety callbacks are switched off."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dqs_callbacks import FiniteGuard, Preempt
from dqs_lightning.cli.training import FitCLI

CONFIGS = Path(__file__).parents[2] / "configs"
Build = Callable[..., list[str]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Build:
    """Returns the class names of `dqs-fit`'s callbacks for given arguments, in the order in which they are called."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DQS_RUN_DIR", "")
    monkeypatch.delenv("DQS_RUN_DIR")
    small = ("--data.environment=Maze", "--trainer.accelerator=cpu")

    def built(*arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["dqs-fit", *small, *arguments])
        cli = FitCLI()
        assert cli.callbacks is cli.trainer.callbacks
        return [type(callback).__name__ for callback in cli.trainer.callbacks]

    return built


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--trainer.callbacks=[]"],
        ["--trainer.callbacks=null"],
        [
            '--trainer.callbacks=[{"class_path": "Throughput"}, {"class_path": "Preempt"}]',
            "--trainer.max_time=01:00:00:00",
        ],
        ['--trainer.callbacks=[{"class_path": "Preempt"}, {"class_path": "FiniteGuard"}]'],
    ],
)
def test_a_list_of_callbacks_does_not_replace_the_safety_callbacks(names: Build, arguments: list[str]) -> None:
    """Preempt comes after all other callbacks and before the checkpoint, also if a configuration lists it."""
    found = names(*arguments)
    assert found.count("FiniteGuard") == found.count("Preempt") == 1
    assert found[-2:] == ["Preempt", "RunCheckpoint"]
    assert ("Timer" in found) == any("max_time" in argument for argument in arguments)


def test_the_default_configuration_has_the_safety_callbacks(names: Build) -> None:
    found = names("--config", str(CONFIGS / "maze.yaml"))
    assert {"FiniteGuard", "Preempt", "Throughput", "Diagnostics", "Evaluate"} <= set(found)
    assert found[-2:] == ["Preempt", "RunCheckpoint"]


def test_a_progress_bar_of_the_user_replaces_that_of_the_default_configuration(names: Build) -> None:
    maze = ("--config", str(CONFIGS / "maze.yaml"))
    assert "FramesProgress" in names(*maze)
    found = names(*maze, "--trainer.callbacks+=RichProgressBar")
    assert "RichProgressBar" in found and "FramesProgress" not in found
    assert "FramesProgress" not in names(*maze, "--trainer.enable_progress_bar=false")


@pytest.mark.parametrize("cls", [FiniteGuard, Preempt])
@pytest.mark.parametrize("listed", [False, True])
def test_each_safety_callback_is_switched_off_by_its_own_option(
    names: Build, tmp_path: Path, cls: type, listed: bool
) -> None:
    option = {FiniteGuard: "finite_guard", Preempt: "preempt"}[cls]
    off = {option: {"enabled": False}}
    if listed:
        off = {"trainer": {"callbacks": [{"class_path": cls.__name__, "init_args": {"enabled": False}}]}}
    (tmp_path / "off.yaml").write_text(yaml.safe_dump(off))
    found = names("--config=off.yaml")
    other = {FiniteGuard: "Preempt", Preempt: "FiniteGuard"}[cls]
    assert cls.__name__ not in found and found.count(other) == 1
