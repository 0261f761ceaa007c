"""Tests of the validation data: `Trainer.validate` returns the mean return of whole episodes."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers import small_agent, small_data, trainer

from dqs_callbacks import Evaluate
from dqs_lightning.agents import SAC
from dqs_lightning.envs import Gym
from dqs_lightning.evaluation.returns import episode_returns, mean_with_interval, policy_of
from dqs_lightning.run.checkpoint import RunCheckpoint

COARSE = Gym("Pendulum-v1", action_repeat=10)


def test_validate_returns_the_mean_return_and_its_interval(tmp_path: Path) -> None:
    data = small_data(environment=COARSE)
    agent = small_agent(data)
    torch.manual_seed(7)
    expected, (low, high) = mean_with_interval(episode_returns(COARSE.make(3, 7), policy_of(agent, best_of=4)))
    L.seed_everything(7, verbose=False)
    torch.randn(5)
    before = torch.get_rng_state()
    (found,) = trainer(tmp_path, [Evaluate(episodes=3, best_of=4)]).validate(agent, data, verbose=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert found == pytest.approx({"eval/return": expected, "eval/return_low": low, "eval/return_high": high}, rel=1e-5)


def test_validate_needs_no_callback_and_any_agent_can_be_validated(tmp_path: Path) -> None:
    data = small_data(environment=COARSE)
    agent = SAC(data.observation_dim, data.action_dim)
    (found,) = trainer(tmp_path, limit_val_batches=1).validate(agent, data, verbose=False)
    assert data.evaluation.episodes == 10 and -2_000 < found["eval/return"] < 0


def test_validate_measures_the_agent_of_a_checkpoint(tmp_path: Path) -> None:
    data = small_data(environment=COARSE, total_frames=1_600, init_random_frames=800)
    agent = small_agent(data)
    trainer(tmp_path, [RunCheckpoint(str(tmp_path))]).fit(agent, data)
    run = trainer(tmp_path, [Evaluate(episodes=3), RunCheckpoint(str(tmp_path))])
    L.seed_everything(7, verbose=False)
    (trained,) = run.validate(agent, data, verbose=False)
    other = small_agent(data)
    (untrained,) = run.validate(other, data, verbose=False)
    (loaded,) = run.validate(other, data, ckpt_path=tmp_path / "last.ckpt", weights_only=True, verbose=False)
    assert trained == loaded != untrained
    assert other.env_frames == 1_600


def test_a_sanity_check_makes_a_few_steps_of_the_same_episodes(tmp_path: Path) -> None:
    found = []

    class Look(L.Callback):
        def on_validation_batch_end(
            self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any
        ) -> None:
            if trainer.sanity_checking:
                found.append(batch["return"])

    L.seed_everything(7, verbose=False)
    data = small_data(environment=COARSE, total_frames=1_600, init_random_frames=800)
    agent = small_agent(data)
    torch.manual_seed(7)
    expected = episode_returns(COARSE.make(3, 7), policy_of(agent), max_steps=2)
    torch.manual_seed(7)
    trainer(tmp_path, [Evaluate(1_600, 3), Look()], num_sanity_val_steps=2).fit(agent, data)
    assert len(found) == 1 and torch.equal(found[0], expected)
