"""Tests of `Compilable`: when the losses are compiled, and the fallback where compiling fails."""

import logging
from pathlib import Path

import pytest
import torch
from helpers import small_agent, small_data, trainer
from tensordict import TensorDict
from torch import Tensor

from dqs_lightning.agents import fused
from dqs_lightning.agents.fused import Compilable, cpp_compiler

BATCH = TensorDict({"x": torch.ones(3)}, [3])
MIN_UPDATES = Compilable.UPDATES


def losses(batch: TensorDict, with_actor: bool) -> tuple[Tensor, dict[str, Tensor]]:
    return batch["x"].sum() * (2 if with_actor else 1), {}


def started(compile: bool | str, updates: int) -> Compilable:
    compilable = Compilable(losses, compile)
    compilable.start(updates)
    return compilable


@pytest.mark.parametrize(
    "compile, updates, compiles",
    [("auto", MIN_UPDATES, True), ("auto", MIN_UPDATES - 1, False), (True, 1, True), (False, MIN_UPDATES, False)],
)
def test_when_the_losses_are_compiled(
    compile: bool | str, updates: int, compiles: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "cpp_compiler", lambda: "/usr/bin/c++")
    with caplog.at_level(logging.INFO, "dqs_lightning"):
        assert started(compile, updates).compiles is compiles
    assert ["compiling the losses" in message for message in caplog.messages] == [True] * compiles


def test_before_a_run_starts_auto_does_not_compile() -> None:
    assert not Compilable(losses, "auto").compiles and Compilable(losses, True).compiles


def test_a_long_run_without_a_compiler_logs_why_it_is_slower(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert cpp_compiler() is None
    with caplog.at_level(logging.INFO, "dqs_lightning"):
        assert not started("auto", MIN_UPDATES).compiles
    assert caplog.messages == [
        "the losses are not compiled, so updates are slower: no C++ compiler (CXX, g++, clang++)"
    ]


@pytest.mark.parametrize("failing", [True, False])
def test_auto_falls_back_to_eager_losses_with_a_warning_where_compiling_fails(
    failing: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If one of the two programs cannot be compiled, "auto" falls back to the eager losses and True raises.

    Torch compiles each program, and raises the compiler's error, at its first call.
    """

    def compiled(batch: TensorDict, with_actor: bool) -> tuple[Tensor, dict[str, Tensor]]:
        if with_actor is failing:
            raise RuntimeError("CppCompileError: C++ compile error\nno space left on device")
        return losses(batch, with_actor)

    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled)
    monkeypatch.setattr(fused, "cpp_compiler", lambda: "/usr/bin/c++")
    compilable = started("auto", MIN_UPDATES)
    with caplog.at_level(logging.WARNING, "dqs_lightning"):
        assert compilable(BATCH, failing)[0] == (6 if failing else 3)
        assert compilable(BATCH, not failing)[0] == (3 if failing else 6)
    (message,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert message.startswith("compiling the losses failed, so updates are slower: ") and "\n" not in message
    explicit = started(True, MIN_UPDATES)
    assert explicit(BATCH, not failing)[0] == (3 if failing else 6)
    with pytest.raises(RuntimeError, match="no space left on device"):
        explicit(BATCH, failing)


def test_an_error_in_the_losses_is_raised_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(batch: TensorDict, with_actor: bool) -> tuple[Tensor, dict[str, Tensor]]:
        raise KeyError("reward")

    monkeypatch.setattr(fused, "cpp_compiler", lambda: "/usr/bin/c++")
    compilable = Compilable(wrong, "auto")
    compilable.start(MIN_UPDATES)
    with pytest.raises(KeyError, match="reward"):
        compilable(BATCH, True)


def test_a_run_passes_its_number_of_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = []
    monkeypatch.setattr(Compilable, "start", lambda self, updates: passed.append(updates))
    data = small_data(total_frames=448)
    trainer(tmp_path).fit(small_agent(data), data)
    assert passed == [16]
