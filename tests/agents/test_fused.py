"""When losses are compiled, and what happens where they cannot be."""

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
LONG = Compilable.UPDATES


def losses(batch: TensorDict, with_actor: bool) -> tuple[Tensor, dict[str, Tensor]]:
    return batch["x"].sum() * (2 if with_actor else 1), {}


def started(compile: bool | str, updates: int) -> Compilable:
    made = Compilable(losses, compile)
    made.start(updates)
    return made


@pytest.mark.parametrize(
    "compile, updates, compiles",
    [("auto", LONG, True), ("auto", LONG - 1, False), (True, 1, True), (False, LONG, False)],
)
def test_what_is_compiled(
    compile: bool | str, updates: int, compiles: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "cpp_compiler", lambda: "/usr/bin/c++")
    with caplog.at_level(logging.INFO, "dqs_lightning"):
        assert started(compile, updates).compiles is compiles
    assert ["compiling the losses" in message for message in caplog.messages] == [True] * compiles


def test_before_a_run_starts_auto_does_not_compile() -> None:
    assert not Compilable(losses, "auto").compiles and Compilable(losses, True).compiles


def test_a_long_run_without_a_compiler_says_why_it_is_slower(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert cpp_compiler() is None
    with caplog.at_level(logging.INFO, "dqs_lightning"):
        assert not started("auto", LONG).compiles
    assert caplog.messages == [
        "the losses are not compiled, so updates are slower: no C++ compiler (CXX, g++, clang++)"
    ]


@pytest.mark.parametrize("failing", [True, False])
def test_where_compiling_fails_auto_computes_without_it_and_says_so(
    failing: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that fails for one of the two programs: torch compiles, and reports it, at the first call of each."""

    def compiled(batch: TensorDict, with_actor: bool) -> tuple[Tensor, dict[str, Tensor]]:
        if with_actor is failing:
            raise RuntimeError("CppCompileError: C++ compile error\nno space left on device")
        return losses(batch, with_actor)

    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled)
    monkeypatch.setattr(fused, "cpp_compiler", lambda: "/usr/bin/c++")
    made = started("auto", LONG)
    with caplog.at_level(logging.WARNING, "dqs_lightning"):
        assert made(BATCH, failing)[0] == (6 if failing else 3)
        assert made(BATCH, not failing)[0] == (3 if failing else 6)
    (message,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert message.startswith("compiling the losses failed, so updates are slower: ") and "\n" not in message
    explicit = started(True, LONG)
    assert explicit(BATCH, not failing)[0] == (3 if failing else 6)
    with pytest.raises(RuntimeError, match="no space left on device"):
        explicit(BATCH, failing)


def test_an_error_of_the_losses_is_raised_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(batch: TensorDict, with_actor: bool) -> tuple[Tensor, dict[str, Tensor]]:
        raise KeyError("reward")

    monkeypatch.setattr(fused, "cpp_compiler", lambda: "/usr/bin/c++")
    made = Compilable(wrong, "auto")
    made.start(LONG)
    with pytest.raises(KeyError, match="reward"):
        made(BATCH, True)


def test_a_run_decides_by_its_number_of_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decided = []
    monkeypatch.setattr(Compilable, "start", lambda self, updates: decided.append(updates))
    data = small_data(total_frames=448)
    trainer(tmp_path).fit(small_agent(data), data)
    assert decided == [16]
