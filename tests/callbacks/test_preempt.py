"""Stop signals in each phase of training: the run stops, saves a checkpoint, and continues exactly."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers import maze_data, small_agent, trainer

from dqs_callbacks import Evaluate, GoalCoverage, Preempt
from dqs_callbacks.periodic import Periodic
from dqs_lightning.checkpoint.archive import safe_load
from dqs_lightning.collection.loader import CollectionHook
from dqs_lightning.run.checkpoint import RunCheckpoint
from dqs_lightning.stop_signal import STOP


@pytest.fixture(autouse=True)
def _no_signal_left() -> Iterator[None]:
    yield
    STOP.uninstall()


class InWarmUp(CollectionHook, L.Callback):
    def on_block_collected(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        os.kill(os.getpid(), signal.SIGHUP)


class InUpdates(L.Callback):
    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == 20:
            os.kill(os.getpid(), signal.SIGUSR1)


class InEvaluation(Periodic):
    """An evaluation of a minute that receives the signal at its start."""

    def __init__(self, every_frames: int) -> None:
        super().__init__(every_frames)
        self.measured: list[int] = []

    def measure(self, trainer: L.Trainer, agent: Any, seed: int) -> None:
        self.measured.append(trainer.global_step)
        torch.randn(3)  # the random state is isolated
        if self.send:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    send = False


class InLastEvaluation(InEvaluation):
    def measure(self, trainer: L.Trainer, agent: Any, seed: int) -> None:
        if trainer.global_step == 96:
            super().measure(trainer, agent, seed)


def fit(folder: Path, phase: L.Callback | None = None, preempt: bool = True) -> L.Trainer:
    L.seed_everything(5, verbose=False)
    data, last = maze_data(), folder / "last.ckpt"
    callbacks = [Evaluate(every_frames=96, episodes=2), GoalCoverage(every_frames=160, rollouts=4)]
    callbacks += [callback for callback in (phase, Preempt(preempt)) if callback]
    run = trainer(folder, [*callbacks, RunCheckpoint(str(folder))])
    run.fit(small_agent(data), data, ckpt_path=last if last.exists() else None, weights_only=True)
    return run


def rows(folder: Path, name: str) -> list[str]:
    """Returns the rows of a file of measurements without their times."""
    return [line.partition('"wall_s"')[0] for line in (folder / name).read_text().splitlines()]


@pytest.mark.parametrize("phase", [InWarmUp, InUpdates, InEvaluation, InLastEvaluation])
def test_the_run_stops_at_once_and_continues_exactly(tmp_path: Path, phase: type) -> None:
    quiet = InEvaluation(96) if issubclass(phase, InEvaluation) else None
    whole = fit(tmp_path / "whole", quiet)
    stopper = phase(96) if issubclass(phase, InEvaluation) else phase()
    stopper.send = True
    start = time.monotonic()
    first = fit(tmp_path / "parts", stopper)
    assert time.monotonic() - start < 5 + 10  # 10 s more for a slow machine
    last = safe_load(tmp_path / "parts" / "last.ckpt")
    assert last["global_step"] == first.global_step and (first.global_step < 96 or phase is InLastEvaluation)
    again = phase(96) if issubclass(phase, InEvaluation) else None
    second = fit(tmp_path / "parts", again)
    if isinstance(again, InEvaluation):
        assert again.measured[0] == first.global_step  # the interrupted evaluation was repeated
    assert second.global_step == 96
    states = [run.lightning_module.state_dict() for run in (whole, second)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    for name in ("scores.jsonl", "goals.jsonl"):
        assert rows(tmp_path / "parts", name) == rows(tmp_path / "whole", name)


def test_without_preempt_the_signal_handlers_are_not_replaced(tmp_path: Path) -> None:
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append("mine"))
    try:
        assert fit(tmp_path, InUpdates(), preempt=False).global_step == 96
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == ["mine"]
