"""Tests of continuing a run with changed settings: some may change and take effect, all others are refused."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers import maze_data, small_agent, trainer

from dqs_lightning.agents import SAC
from dqs_lightning.checkpoint.archive import CheckpointError, safe_load
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.diffusion import MLP, Ancestral, Cosine, Importance
from dqs_lightning.envs import Gym, Maze
from dqs_lightning.run.checkpoint import RunCheckpoint
from dqs_lightning.run.resume import MAY_CHANGE, changes, settings_of
from dqs_lightning.temperature import Constant, LogLinear


class StopAt(L.Callback):
    def __init__(self, update: int) -> None:
        self.update = update

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        trainer.should_stop = trainer.global_step >= self.update


def fit(folder: Path, stop_at: int | None = None, seed: int = 5, data: Any = None, **agent: Any) -> tuple:
    """Starts or continues a run; returns its agent, data and trainer."""
    L.seed_everything(seed, verbose=False)
    data = data or maze_data()
    callbacks: list[L.Callback] = [RunCheckpoint(str(folder)), *([StopAt(stop_at)] if stop_at else [])]
    made, last, run = small_agent(data, **agent), folder / "last.ckpt", trainer(folder, callbacks)
    run.fit(made, data, ckpt_path=last if last.exists() else None, weights_only=True)
    return made, data, run


def settings(data: OnlineData | None = None, cls: Any = None, **agent: Any) -> dict[str, Any]:
    data = data or maze_data()
    return settings_of(cls(2, 2) if cls else small_agent(data, **agent), data)


REFUSED = {
    "data.environment": ({"data": maze_data(environment=Gym("Pendulum-v1"))}, "Maze", "Gym"),
    "data.environment.horizon": ({"data": maze_data(environment=Maze(horizon=30))}, "20", "30"),
    "data.num_envs": ({"data": maze_data(num_envs=4)}, "2", "4"),
    "data.steps_per_collect": ({"data": maze_data(steps_per_collect=4)}, "8", "4"),
    "data.updates_per_step": ({"data": maze_data(updates_per_step=0.5)}, "1.0", "0.5"),
    "data.batch_size": ({"data": maze_data(batch_size=8)}, "16", "8"),
    "data.n_steps": ({"data": maze_data(n_steps=3)}, "1", "3"),
    "data.init_random_frames": ({"data": maze_data(init_random_frames=32)}, "64", "32"),
    "model": ({"cls": SAC}, "DQS", "SAC"),
    "model.noise_schedule": ({"noise_schedule": Cosine()}, "Geometric", "Cosine"),
    "model.sampler.steps": ({"sampler": Ancestral(5)}, "3", "5"),
    "model.energy_estimator.num_samples": ({"energy_estimator": Importance(5)}, "4", "5"),
    "model.critic_backbone.hidden": ({"critic_backbone": MLP((8, 8))}, r"\[32, 32\]", r"\[8, 8\]"),
    "model.temperature": ({"temperature": Constant(0.1)}, "Relative", "Constant"),
    "model.normalise_observations": ({"normalise_observations": False}, "True", "False"),
    "model.discount": ({"discount": 0.9}, "0.99", "0.9"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_setting_that_must_not_change_is_refused_with_its_key_and_both_values(key: str) -> None:
    changed, old, new = REFUSED[key]
    message = rf"run/last.ckpt: {key} is {old} in that run and {new} here"
    with pytest.raises(CheckpointError, match=message):
        changes(settings(), settings(**changed), "run/last.ckpt")


def test_settings_are_plain_values_and_the_same_from_a_checkpoint(tmp_path: Path) -> None:
    agent, data, _ = fit(tmp_path, stop_at=1)
    saved = safe_load(tmp_path / "last.ckpt")["settings"]
    assert saved == settings_of(agent, data) and saved["seed_everything"] == "5"
    assert saved["model.temperature"] == "Relative" and saved["data.environment.horizon"] == 20


def test_another_seed_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, stop_at=1)
    with pytest.raises(CheckpointError, match="seed_everything is 5 in that run and 6 here"):
        fit(tmp_path, seed=6)


def test_a_step_size_may_change_and_takes_effect(tmp_path: Path) -> None:
    fit(tmp_path, stop_at=10)
    agent, _, run = fit(tmp_path, critic_lr=0.25)
    assert [group["lr"] for group in run.optimizers[0].param_groups] == [0.25, agent.actor_lr]
    assert safe_load(tmp_path / "last.ckpt")["settings"]["model.critic_lr"] == 0.25
    moments = run.optimizers[0].state[next(agent.critic.parameters())]
    assert moments["step"] == run.global_step  # the optimizer's state was continued


def test_a_longer_run_continues_where_the_finished_one_ended(tmp_path: Path) -> None:
    _, _, first = fit(tmp_path)
    assert first.global_step == 96
    longer, data, run = fit(tmp_path, data=maze_data(total_frames=224))
    assert (run.global_step, data.env_frames, data.finished) == (160, 224, True)
    whole, *_ = fit(tmp_path / "whole", data=maze_data(total_frames=224))
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in longer.state_dict().items())


def test_a_run_with_fewer_frames_makes_the_remaining_updates_and_ends(tmp_path: Path) -> None:
    fit(tmp_path, stop_at=70)
    _, data, run = fit(tmp_path, data=maze_data(total_frames=128))
    assert data.finished and (data.env_frames, run.global_step) == (144, 80)


@pytest.mark.parametrize("key", sorted(MAY_CHANGE))
def test_each_setting_that_may_change_exists(key: str) -> None:
    """Otherwise a renamed argument would leave an unused row in the table."""
    schedule = {"temperature": LogLinear()}
    known = {*settings(**schedule), *settings(cls=SAC)}
    assert key in known


def test_the_table_in_the_documentation_matches_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "guarantees.md").read_text()
    for key, kind in MAY_CHANGE.items():
        assert f"| `{key}` | {kind} |" in page
