"""Tests of a run's checkpoint: it matches its rank files, allows any `max_epochs`, and survives failed writes."""

import contextlib
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers import files_up_to, maze_data, small_agent, trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from dqs_callbacks import Evaluate
from dqs_lightning.agents import load_agent
from dqs_lightning.checkpoint.archive import CheckpointError, NotSavedError, safe_load
from dqs_lightning.run.checkpoint import RunCheckpoint


class StopAt(L.Callback):
    def __init__(self, update: int) -> None:
        self.update = update

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        trainer.should_stop = trainer.global_step >= self.update


def fit(folder: Path, *callbacks: L.Callback, checkpoint: RunCheckpoint | None = None, **flags: object) -> L.Trainer:
    L.seed_everything(5, verbose=False)
    data, last = maze_data(), folder / "last.ckpt"
    run = trainer(folder, [*callbacks, checkpoint or RunCheckpoint(str(folder))], **flags)
    run.fit(small_agent(data), data, ckpt_path=last if last.exists() else None, weights_only=True)
    return run


class FullDisk(L.Callback):
    """Simulates a full disk at some updates. Must come before RunCheckpoint."""

    def __init__(self, *updates: int) -> None:
        self.updates, self.stack = updates, contextlib.ExitStack()

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step in self.updates:
            self.stack.enter_context(files_up_to(1000))

    def on_train_batch_start(self, *_: object) -> None:
        self.stack.close()

    on_exception = on_train_batch_start


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_save_that_fails_keeps_the_previous_checkpoint_and_is_retried(tmp_path: Path) -> None:
    checkpoint, seen = RunCheckpoint(str(tmp_path), every_n_updates=10), []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
            if trainer.global_step in (20, 30):
                seen.append((safe_load(tmp_path / "last.ckpt")["global_step"], names(tmp_path)))

    with pytest.warns(RuntimeWarning, match="the checkpoint cannot be written .*; the previous one is kept"):
        fit(tmp_path, FullDisk(20), Look(), checkpoint=checkpoint)
    assert seen == [
        (10, ["last.ckpt", "step=10-frames=80-rank=0.pt"]),
        (30, ["last.ckpt", "step=30-frames=96-rank=0.pt"]),
    ]


def test_after_three_failures_the_run_ends_with_the_cause(tmp_path: Path) -> None:
    checkpoint = RunCheckpoint(str(tmp_path), every_n_updates=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.raises(NotSavedError, match=r"3 attempts .* failed; the previous one is kept"):
            fit(tmp_path, FullDisk(20, 30, 40), checkpoint=checkpoint)
    assert safe_load(tmp_path / "last.ckpt")["global_step"] == 10
    assert fit(tmp_path).global_step == 96


def test_a_rank_file_of_another_save_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, StopAt(10))
    own = tmp_path / "step=10-frames=80-rank=0.pt"
    other = tmp_path / "other"
    L.seed_everything(6, verbose=False)
    data = maze_data()
    trainer(other, [StopAt(10), RunCheckpoint(str(other))]).fit(small_agent(data), data)
    own.write_bytes((other / own.name).read_bytes())
    with pytest.raises(CheckpointError, match=r"rank=0.pt: does not belong to the checkpoint beside it"):
        fit(tmp_path)
    own.unlink()
    with pytest.raises(CheckpointError, match=r"rank=0.pt: no such file; last.ckpt cannot be continued without it"):
        fit(tmp_path)


def test_a_checkpoint_without_a_replay_buffer_is_not_continued(tmp_path: Path) -> None:
    """A ModelCheckpoint's file has only the weights, so the run would continue with an empty buffer."""
    L.seed_everything(5, verbose=False)
    data = maze_data()
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=20, save_top_k=-1)
    trainer(tmp_path, [keep]).fit(small_agent(data), data)
    file = tmp_path / "step=20.ckpt"
    for callbacks in ([], [RunCheckpoint(str(tmp_path))]):
        data = maze_data()
        with pytest.raises(CheckpointError, match=r"step=20.ckpt: .*cannot be continued"):
            trainer(tmp_path, callbacks).fit(small_agent(data), data, ckpt_path=file, weights_only=True)


@pytest.mark.parametrize("max_epochs", [-1, 3])
def test_any_number_of_epochs_ends_at_the_run_s_frames(tmp_path: Path, max_epochs: int) -> None:
    one, many = (fit(tmp_path / str(number), max_epochs=number) for number in (1, max_epochs))
    assert one.global_step == many.global_step == 96
    states = [run.lightning_module.state_dict() for run in (one, many)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert safe_load(tmp_path / str(max_epochs) / "last.ckpt")["finished"]


class Pause(L.Callback):
    """Waits once, at an update, so that a limit of time ends the run there on a machine of any speed."""

    def __init__(self, update: int, seconds: float) -> None:
        self.update, self.seconds = update, seconds

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == self.update:
            time.sleep(self.seconds)


@pytest.mark.parametrize("flags", [{"max_time": {"seconds": 0.4}}, {"max_steps": 20}, {"limit_train_batches": 20}])
def test_a_run_that_the_trainer_ends_early_is_continued(tmp_path: Path, flags: dict) -> None:
    whole = fit(tmp_path / "whole")
    first = fit(tmp_path / "parts", Pause(20, 0.5 if "max_time" in flags else 0), **flags)
    assert 0 < first.global_step < 96 and not first.datamodule.finished
    second = fit(tmp_path / "parts")
    assert second.global_step == 96 and second.datamodule.finished
    states = [run.lightning_module.state_dict() for run in (whole, second)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


class Returns(L.Callback):
    """Replaces the returns of evaluations by the given ones."""

    def __init__(self, *returns: float) -> None:
        self.returns = list(returns)

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *_: Any) -> None:
        batch["return"].fill_(self.returns.pop(0))


def scores(folder: Path) -> Evaluate:
    """Evaluates at 80, 96, 128 and 160 frames."""
    return Evaluate(every_frames=32, episodes=2, path=str(folder / "scores.jsonl"))


def test_the_agent_of_the_best_evaluation_is_kept(tmp_path: Path) -> None:
    """Also if later evaluations are worse or not finite; it can be loaded, and not continued."""
    checkpoint = RunCheckpoint(str(tmp_path))
    fit(tmp_path, Returns(1.0, 3.0, 2.0, float("nan")), scores(tmp_path), checkpoint=checkpoint)
    assert checkpoint.best_return == 3.0
    assert load_agent(tmp_path / "best.ckpt").env_frames == 96
    assert safe_load(tmp_path / "last.ckpt")["env_frames"] == 160
    data = maze_data()
    run = trainer(tmp_path / "again", [RunCheckpoint(str(tmp_path / "again"))])
    with pytest.raises(CheckpointError, match=r"best.ckpt cannot be continued without it: use the run's last.ckpt"):
        run.fit(small_agent(data), data, ckpt_path=tmp_path / "best.ckpt", weights_only=True)


def test_a_best_agent_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    checkpoint = RunCheckpoint(str(tmp_path))

    class Full(L.Callback):
        def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
            self.stack = contextlib.ExitStack()
            if trainer.global_step == 32:
                self.stack.enter_context(files_up_to(1000))

        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 32:
                self.stack.close()

    file = tmp_path / "scores.jsonl"
    with pytest.warns(RuntimeWarning, match="best.ckpt.*cannot be written"):
        fit(tmp_path, Full(), Returns(1.0, 3.0, 2.0, 1.5), scores(tmp_path), checkpoint=checkpoint)
    assert checkpoint.best_return == 2.0 and load_agent(tmp_path / "best.ckpt").env_frames == 128
    assert len(file.read_text().splitlines()) == 4


def test_several_checkpoints_are_kept_and_each_can_be_continued(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole")
    fit(tmp_path / "kept", checkpoint=RunCheckpoint(str(tmp_path / "kept"), every_n_updates=20, keep=3))
    stems = [f"step={step}-frames={frames}" for step, frames in ((60, 128), (80, 144), (96, 160))]
    assert names(tmp_path / "kept") == [
        "last.ckpt",
        *sorted(f"{s}{end}" for s in stems for end in (".ckpt", "-rank=0.pt")),
    ]
    data, earlier = maze_data(), tmp_path / "kept" / "step=60-frames=128.ckpt"
    run = trainer(tmp_path / "again", [RunCheckpoint(str(tmp_path / "again"))])
    run.fit(small_agent(data), data, ckpt_path=earlier, weights_only=True)
    states = [made.lightning_module.state_dict() for made in (whole, run)]
    assert run.global_step == 96 and all(torch.equal(value, states[1][name]) for name, value in states[0].items())
