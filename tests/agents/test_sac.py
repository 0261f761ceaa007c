"""Tests of SAC: what it adds to TorchRL's loss, and that it learns."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import one_step_batch, small, small_data, trainer

from dqs_callbacks import FiniteGuard
from dqs_lightning.agents import SAC, load_agent
from dqs_lightning.envs import Maze
from dqs_lightning.run.checkpoint import RunCheckpoint


def trained(agent: SAC, updates: int, reward: Any) -> SAC:
    optimizer = agent.configure_optimizers()
    for _ in range(updates):
        action = torch.rand(64, agent.action_dim) * 2 - 1
        found = agent.loss(one_step_batch(reward(action), action))
        optimizer.zero_grad()
        (found["loss_qvalue"] + found["loss_actor"] + found["loss_alpha"]).backward()
        optimizer.step()
    return agent


def test_samples_the_requested_number_of_actions_within_the_bounds() -> None:
    agent, observation = SAC(3, 2, **small((16,))), 100 * torch.randn(7, 3)
    drawn = agent.sample(observation, 5)
    assert drawn.shape == (5, 7, 2) and drawn.abs().max() <= 1
    assert not torch.equal(drawn[0], drawn[1])
    deterministic = agent.sample(observation, 2, deterministic=True)
    assert torch.equal(deterministic[0], deterministic[1]) and torch.equal(
        deterministic[0], agent.act(observation, deterministic=True)
    )
    assert agent.act(observation[0]).shape == (2,)


def test_q_value_is_the_smaller_of_the_two_critics_that_the_loss_trains() -> None:
    agent = trained(SAC(2, 1, **small((64, 64)), learning_rate=3e-3), 400, lambda a: a[:, 0].square())
    action = torch.linspace(-1, 1, 9).reshape(9, 1, 1)
    q = agent.q_value(torch.zeros(1, 2), action).squeeze(-1)
    torch.testing.assert_close(q, action.flatten().square(), atol=0.1, rtol=0)
    batch = one_step_batch(torch.zeros(9), action[:, 0])
    both = agent.loss._vmap_qnetworkN0(batch, agent.loss.qvalue_network_params)["state_action_value"]
    torch.testing.assert_close(q, both.amin(0).squeeze(-1))


def test_the_temperature_keeps_the_entropy_at_its_target() -> None:
    agent = SAC(2, 1, **small((32,)), learning_rate=1e-2, target_entropy=-0.5, initial_temperature=0.1)
    trained(agent, 800, lambda a: -4 * (a[:, 0] - 0.3).square())
    actions = agent.sample(torch.zeros(1, 2), 20_000).flatten().double()
    share = torch.histc(actions, 100, -1, 1) / len(actions)
    entropy = torch.special.entr(share).sum() + torch.log(torch.tensor(2 / 100))
    assert entropy == pytest.approx(-0.5, abs=0.2)
    assert actions.mean() == pytest.approx(0.3, abs=0.1)


def test_a_resumed_run_is_bitwise_identical(tmp_path: Path) -> None:
    weights = []
    for folder, steps in (("whole", (-1,)), ("cut", (60, -1))):
        for max_steps in steps:
            data = small_data(environment=Maze(), total_frames=400, init_random_frames=200)
            torch.manual_seed(3)
            agent = SAC(data.observation_dim, data.action_dim, **small((32, 32)))
            checkpoints = tmp_path / folder / "checkpoints"
            last = checkpoints / "last.ckpt"
            fit = trainer(tmp_path / folder, [FiniteGuard(), RunCheckpoint(str(checkpoints))], max_steps=max_steps)
            fit.fit(agent, data, ckpt_path=last if last.exists() else None, weights_only=True)
        weights.append(agent.state_dict())
    assert fit.global_step == 192
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    targets = agent.loss.target_qvalue_network_params.flatten_keys(".").values()
    online = agent.loss.qvalue_network_params.flatten_keys(".").values()
    assert any(not torch.equal(a, b) for a, b in zip(targets, online, strict=True))  # targets lag behind
    loaded = load_agent(last)
    observation = torch.randn(4, data.observation_dim)
    assert torch.equal(loaded.act(observation, True), agent.act(observation, True))


@pytest.mark.parametrize(
    "changes",
    [{"learning_rate": 0}, {"initial_temperature": -1}, {"discount": 1.1}, {"tau": 0}, {"best_of": 0}],
)
def test_bad_arguments_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        SAC(3, 2, **changes)
