"""Tests of checkpoint files: they are written atomically, run no code when loaded, and continue a run exactly."""

import pickle
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from helpers import small_agent, small_data, trainer

from dqs_lightning.checkpoint.archive import CheckpointError, atomic_save, load_run, safe_load
from dqs_lightning.envs import DMControl
from dqs_lightning.run.checkpoint import RunCheckpoint


def test_a_process_that_dies_while_saving_keeps_the_old_file_intact(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    atomic_save({"step": 1}, path)
    script = f"""
import os, torch
from dqs_lightning.checkpoint import archive as checkpoint
write = torch.save
def half(value, file):
    write(value, file)
    file.truncate(file.tell() // 2)
    file.flush()
    os._exit(9)
torch.save = half
checkpoint.atomic_save({{"step": 2, "much": torch.zeros(10_000)}}, {str(path)!r})
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == 9
    assert safe_load(path) == {"step": 1}


def test_a_failed_save_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"pickle|local object"):
        atomic_save({"lambda": lambda: None}, tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.target,))


def test_loading_runs_no_code_from_the_file(tmp_path: Path) -> None:
    torch.save({"weights": Payload(tmp_path / "ran")}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match=r"evil.ckpt: not a readable checkpoint"):
        safe_load(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()
    with (tmp_path / "evil.ckpt").open("rb") as file, pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_missing_and_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"none.ckpt: no such checkpoint file"):
        safe_load(tmp_path / "none.ckpt")
    (tmp_path / "bad.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad.ckpt: not a readable checkpoint"):
        safe_load(tmp_path / "bad.ckpt")


@pytest.mark.parametrize("content", [{"replay": {}}, torch.zeros(2)])
def test_other_saved_objects_are_not_accepted_as_a_runs_checkpoint(tmp_path: Path, content: object) -> None:
    atomic_save(content, tmp_path / "step=4-rank=0.pt")
    with pytest.raises(CheckpointError, match=r"rank=0.pt: not a run's checkpoint; use its last.ckpt"):
        load_run(tmp_path / "step=4-rank=0.pt")


class StopAt(L.Callback):
    def __init__(self, update: int) -> None:
        self.update = update

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        trainer.should_stop = trainer.global_step >= self.update


def fit(folder: Path, stop_at: int | None = None, resume: bool = False, n_steps: int = 1) -> dict[str, torch.Tensor]:
    """Trains on cartpole with episodes of 50 actions, a full replay buffer and a fractional update ratio."""
    L.seed_everything(5)
    data = small_data(
        environment=DMControl("cartpole", "swingup", action_repeat=20),
        total_frames=9_600,
        init_random_frames=1_600,
        replay_size=200,
        updates_per_step=0.7,
        n_steps=n_steps,
    )
    callbacks: list[L.Callback] = [RunCheckpoint(str(folder), every_n_updates=10_000)]
    if stop_at:
        callbacks.append(StopAt(stop_at))
    agent = small_agent(data)
    ckpt_path = folder / "last.ckpt" if resume else None
    trainer(folder, callbacks).fit(agent, data, ckpt_path=ckpt_path, weights_only=True)
    state = {"frames": torch.tensor(data.env_frames), **agent.state_dict()}
    replay = safe_load(next(folder.glob("step=*-rank=0.pt")))["replay"]
    return {**state, "replay": replay["action"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The final state of an uninterrupted run."""
    return fit(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(("stop_at", "n_steps"), [(1, 1), (37, 1), (150, 1), (37, 3)])
def test_a_stopped_run_continues_bitwise(
    whole: dict[str, torch.Tensor], tmp_path: Path, stop_at: int, n_steps: int
) -> None:
    whole = whole if n_steps == 1 else fit(tmp_path / "whole", n_steps=n_steps)
    fit(tmp_path / "parts", stop_at=stop_at, n_steps=n_steps)
    parts = fit(tmp_path / "parts", resume=True, n_steps=n_steps)
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name


def test_continuing_with_another_n_steps_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, stop_at=1)
    with pytest.raises(CheckpointError, match=r"data\.n_steps is 1 in that run and 3 here"):
        fit(tmp_path, resume=True, n_steps=3)


def test_only_the_newest_rank_file_is_kept(tmp_path: Path) -> None:
    data = small_data()
    trainer(tmp_path, [RunCheckpoint(str(tmp_path), every_n_updates=50)]).fit(small_agent(data), data)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "step=192-frames=800-rank=0.pt"]


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    data = small_data(total_frames=480)
    trainer(tmp_path, [RunCheckpoint(str(tmp_path))]).fit(small_agent(data), data)
    checkpoint = safe_load(tmp_path / "last.ckpt")
    atomic_save({**checkpoint, "world_size": 4}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"--trainer.devices=4"):
        trainer(tmp_path, [RunCheckpoint(str(tmp_path))]).fit(
            small_agent(data), data, ckpt_path=tmp_path / "last.ckpt", weights_only=True
        )
