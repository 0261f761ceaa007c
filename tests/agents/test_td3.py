"""Tests of TD3: what it adds to TorchRL's loss, and that it learns."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import one_step_batch, small, small_data, trainer
from torch import Tensor

from dqs_callbacks import FiniteGuard
from dqs_lightning.agents import TD3
from dqs_lightning.envs import Maze
from dqs_lightning.run.checkpoint import RunCheckpoint


def test_explores_around_one_action_within_the_bounds() -> None:
    agent, observation = TD3(3, 2, **small(), exploration_noise=0.1), torch.randn(5, 3)
    best = agent.act(observation, deterministic=True)
    drawn = agent.sample(observation, 4000)
    assert drawn.shape == (4000, 5, 2) and drawn.abs().max() <= 1
    assert (drawn - best).std(0) == pytest.approx(0.1, abs=0.01)
    assert agent.act(observation[0]).shape == (2,)
    assert TD3(3, 2, **small(), exploration_noise=3.0).sample(observation, 100).abs().max() == 1


def test_learns_the_best_action() -> None:
    """Learns the best action of one-step episodes with reward -(a - 0.3)^2."""
    agent = TD3(2, 1, **small((64, 64)), learning_rate=3e-3)
    optimizer = agent.configure_optimizers()
    for _ in range(600):
        action = torch.rand(64, 1) * 2 - 1
        batch = one_step_batch(-(action[:, 0] - 0.3).square(), action)
        optimizer.zero_grad()
        (agent.loss.value_loss(batch)[0] + agent.loss.actor_loss(batch)[0]).backward()
        optimizer.step()
    observation = torch.zeros(1, 2)
    assert agent.act(observation, deterministic=True).item() == pytest.approx(0.3, abs=0.07)
    actions = torch.linspace(-1, 1, 9).reshape(9, 1, 1)
    torch.testing.assert_close(
        agent.q_value(observation, actions).flatten(), -(actions.flatten() - 0.3).square(), atol=0.1, rtol=0
    )


def policy_and_targets(agent: TD3) -> tuple[Tensor, Tensor, Tensor]:
    names = ("actor_network_params", "target_actor_network_params", "target_qvalue_network_params")
    parts = [getattr(agent.loss, name).flatten_keys(".").values() for name in names]
    return tuple(torch.cat([value.detach().flatten() for value in part]) for part in parts)


def test_policy_and_targets_change_at_every_second_update(tmp_path: Path) -> None:
    history = []
    for updates in (1, 2, 3, 4):
        data = small_data()
        torch.manual_seed(3)
        agent = TD3(data.observation_dim, data.action_dim, **small())
        if not history:
            history.append(policy_and_targets(agent))
        trainer(tmp_path / str(updates), max_steps=updates).fit(agent, data)
        history.append(policy_and_targets(agent))
    for i, changes in enumerate((True, False, True, False)):
        assert [not torch.equal(a, b) for a, b in zip(history[i], history[i + 1], strict=True)] == [changes] * 3


def test_a_resumed_run_is_bitwise_identical(tmp_path: Path) -> None:
    weights = []
    for folder, steps in (("whole", (-1,)), ("cut", (61, -1))):
        for max_steps in steps:
            data = small_data(environment=Maze(), total_frames=400, init_random_frames=200)
            torch.manual_seed(3)
            agent = TD3(data.observation_dim, data.action_dim, **small(), normalise_observations=True)
            last = tmp_path / folder / "checkpoints" / "last.ckpt"
            callbacks = [FiniteGuard(), RunCheckpoint(str(last.parent))]
            fit = trainer(tmp_path / folder, callbacks, max_steps=max_steps)
            fit.fit(agent, data, ckpt_path=last if last.exists() else None, weights_only=True)
        weights.append(agent.state_dict())
    assert fit.global_step == 192
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert weights[0]["observation_norm.batches"] == 192


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 0},
        {"exploration_noise": -0.1},
        {"policy_noise": -1},
        {"noise_clip": -1},
        {"actor_every": 0},
        {"discount": 1.1},
        {"tau": 0},
    ],
)
def test_bad_arguments_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        TD3(3, 2, **changes)
