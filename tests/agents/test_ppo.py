"""Tests of PPO: what it adds to TorchRL's loss, and that it learns."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers import small, small_data, trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dqs_callbacks import FiniteGuard
from dqs_lightning.agents import PPO
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.envs import Maze
from dqs_lightning.run.checkpoint import RunCheckpoint

SHORT_ROLLOUTS = {"rollout_steps": 48, "epochs": 3, "minibatch_size": 20}


def block(agent: PPO, reward: Tensor, terminated: Tensor, truncated: Tensor) -> TensorDictBase:
    """Returns T consecutive transitions of one environment."""
    observation = torch.randn(len(reward) + 1, 3)
    following = {
        "observation": observation[1:],
        "reward": reward.unsqueeze(-1),
        "terminated": terminated.unsqueeze(-1),
        "truncated": truncated.unsqueeze(-1),
        "done": (terminated | truncated).unsqueeze(-1),
    }
    action = agent.act(observation[:-1])
    return TensorDict({"observation": observation[:-1], "action": action, "next": following}, [len(reward)])


def test_advantages_are_generalised_advantage_estimates() -> None:
    """A_t = sum_l (gamma lambda)^l delta_(t+l) to the end of the episode; only truncated states are bootstrapped."""
    agent = PPO(3, 2, **small(), discount=0.9, gae_lambda=0.7)
    reward, ends = torch.randn(6), torch.zeros(6, dtype=torch.bool)
    terminated, truncated = ends.clone(), ends.clone()
    terminated[1], truncated[4] = True, True
    collected = block(agent, reward, terminated, truncated)
    raw = collected.clone()
    prepared = agent.prepare(collected)
    with torch.no_grad():
        value = agent.loss.critic_network.module(raw["observation"]).squeeze(-1)
        following = agent.loss.critic_network.module(raw["next", "observation"]).squeeze(-1)
    delta = reward + 0.9 * following * ~terminated - value
    expected, running = torch.zeros(6), torch.tensor(0.0)
    for t in reversed(range(6)):
        running = delta[t] + 0.9 * 0.7 * running * ~(terminated | truncated)[t]
        expected[t] = running
    torch.testing.assert_close(prepared["advantage"].squeeze(-1), expected)
    torch.testing.assert_close(prepared["value_target"].squeeze(-1), expected + value)
    assert torch.equal(prepared["observation"], raw["observation"])


def test_the_ratio_is_one_on_the_rollout_itself() -> None:
    """The probability ratio is 1 on a rollout, also with normalised observations, whose statistics it updates."""
    agent = PPO(3, 2, **small(), normalise_observations=True)
    agent.loss.actor_network.module[0].module[0].last.weight.data.normal_(std=3.0)  # actions near the bounds
    for _ in range(2):
        ends = torch.zeros(40, dtype=torch.bool)
        prepared = agent.prepare(block(agent, torch.randn(40), ends, ends))
        found = agent.loss(prepared)
        assert found["kl_approx"].abs() < 1e-5 and found["clip_fraction"] == 0
    assert agent.observation_norm.batches == 2


def test_learns_the_best_action() -> None:
    torch.manual_seed(0)
    agent = PPO(3, 1, **small((64, 64)), learning_rate=3e-3, minibatch_size=256)
    optimizer = agent.configure_optimizers()
    ends = torch.ones(256, dtype=torch.bool)
    for _ in range(40):
        collected = block(agent, torch.zeros(256), ends, ~ends)
        collected["next", "reward"] = -(collected["action"] - 0.3).square()
        prepared = agent.prepare(collected)
        for _ in range(10):
            optimizer.zero_grad()
            found = agent.loss(prepared)
            (found["loss_objective"] + found["loss_critic"] + found["loss_entropy"]).backward()
            optimizer.step()
    observation = torch.randn(100, 3)
    assert agent.act(observation, deterministic=True).mean() == pytest.approx(0.3, abs=0.1)
    assert agent.sample(observation, 50).std() < 0.3


class BatchRecorder(L.Callback):
    def __init__(self) -> None:
        self.rows: list[TensorDictBase] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs, batch, batch_idx) -> None:
        self.rows.append(batch)


def test_each_rollout_is_used_for_several_epochs(tmp_path: Path) -> None:
    data, recorder = small_data(total_frames=401), BatchRecorder()
    fit = trainer(tmp_path, [recorder])
    fit.fit(PPO(data.observation_dim, data.action_dim, **small(), **SHORT_ROLLOUTS), data)
    # A rollout is 48 steps of 2 frames, 5 rollouts reach 400 frames; an epoch has 2 whole batches of 20.
    assert data.env_frames == 480 and fit.global_step == 5 * 3 * 2
    for rollout in range(5):
        epochs = [torch.cat(recorder.rows[start : start + 2]) for start in range(6 * rollout, 6 * rollout + 6, 2)]
        for epoch in epochs:
            assert len(torch.unique(epoch["observation"], dim=0)) == 40
        assert not torch.equal(epochs[0]["observation"], epochs[1]["observation"])
    first, last = (
        set(map(tuple, torch.cat(rows)["observation"].tolist())) for rows in (recorder.rows[:6], recorder.rows[-6:])
    )
    assert not first & last


def test_a_resumed_run_is_bitwise_identical(tmp_path: Path) -> None:
    weights = []
    for folder, steps in (("whole", (-1,)), ("cut", (21, -1))):
        for max_steps in steps:
            data = small_data(environment=Maze(), total_frames=300, init_random_frames=200)
            torch.manual_seed(3)
            agent = PPO(data.observation_dim, data.action_dim, **small(), **SHORT_ROLLOUTS, normalise_observations=True)
            last = tmp_path / folder / "checkpoints" / "last.ckpt"
            callbacks = [FiniteGuard(), RunCheckpoint(str(last.parent))]
            fit = trainer(tmp_path / folder, callbacks, max_steps=max_steps)
            fit.fit(agent, data, ckpt_path=last if last.exists() else None, weights_only=True)
        weights.append(agent.state_dict())
    assert fit.global_step == 7 * 6
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_more_environments_than_a_rollout_allows_are_refused(tmp_path: Path) -> None:
    data = OnlineData(small_data().environment, num_envs=40, total_frames=800, init_random_frames=0)
    agent = PPO(data.observation_dim, data.action_dim, **small(), **SHORT_ROLLOUTS | {"minibatch_size": 48})
    with pytest.raises(ValueError, match="num_envs=40: a rollout of 48 steps has 1 for each environment, "):
        trainer(tmp_path).fit(agent, data)


def test_has_no_q() -> None:
    with pytest.raises(MisconfigurationException, match="PPO has no Q"):
        PPO(3, 2).q_value(torch.zeros(1, 3), torch.zeros(1, 2))


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 0},
        {"rollout_steps": 0},
        {"epochs": 0},
        {"minibatch_size": 0},
        {"minibatch_size": 4096},
        {"discount": 1.1},
        {"gae_lambda": -0.1},
        {"clip": 1.0},
        {"entropy_coefficient": -1},
        {"value_coefficient": 0},
    ],
)
def test_bad_arguments_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        PPO(3, 2, **changes)
