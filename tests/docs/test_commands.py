"""Tests that the pages' command lines, configurations and Python blocks are accepted."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import ROOT, commands, fenced, needs_example

from dqs_lightning.cli import evaluate, fit, sweep
from dqs_lightning.cli.export import command as export
from dqs_lightning.cli.report import command as report

PARSERS: dict[str, Callable[[list[str]], Any]] = {
    "dqs-eval": evaluate.parse,
    "dqs-export": export.parse,
    "dqs-report": report.parse,
    "dqs-sweep": sweep.parse,
}


@pytest.fixture
def accepted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], None]:
    """Asserts that `dqs-fit` accepts the given arguments, without starting a run."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DQS_RUN_DIR", "")  # a run sets it; monkeypatch restores it afterwards
    monkeypatch.delenv("DQS_RUN_DIR")

    def call(arguments: list[str]) -> None:
        extra = [] if any(".help" in argument or argument == "--help" for argument in arguments) else ["--print_config"]
        monkeypatch.setattr(sys, "argv", ["dqs-fit", *arguments, *extra])
        try:
            code = fit.main()
        except SystemExit as stop:
            code = stop.code
        assert code == 0, capsys.readouterr().err

    return call


@pytest.mark.parametrize("words", [c for c in commands() if not needs_example(c)], ids=lambda words: shlex.join(words))
def test_command_lines_are_accepted(words: tuple[str, ...], accepted: Callable[[list[str]], None]) -> None:
    command, *arguments = words
    if command == "dqs-fit":
        accepted(arguments)
    else:
        PARSERS[command](arguments)


@pytest.mark.parametrize("text", fenced("yaml"))
def test_configurations_are_accepted(text: str, accepted: Callable[[list[str]], None], tmp_path: Path) -> None:
    """Each is a file to be added to a task's configuration, a file that extends one in configs/, or a sweep."""
    content = yaml.safe_load(text)
    file = tmp_path / "mine.yaml"
    if "seeds" in content:
        file.write_text(yaml.safe_dump({**content, "config": str(ROOT / "configs" / content["config"])}))
        assert sweep.main([str(file), "--dry-run", "--out", str(tmp_path / "out")]) == 0
    elif "extends" in content:
        file.write_text(yaml.safe_dump({**content, "extends": str(ROOT / "configs" / content["extends"])}))
        accepted(["--config", str(file)])
    else:
        file.write_text(text)
        accepted(["--config", str(ROOT / "configs" / "walker.yaml"), "--config", str(file)])


@pytest.mark.parametrize("text", fenced("python"))
def test_python_blocks_compile(text: str) -> None:
    compile(text, "page", "exec")
