"""Tests of DQS for several objectives: its critics, targets and relabelling, and runs that it continues exactly."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import maze_data, small, trainer
from tensordict import TensorDict
from torch import Tensor

from dqs_lightning.agents import SAC, Backup, CriticLoss, MultiObjectiveDQS, load_agent
from dqs_lightning.agents.backups import ExpectedQ, SelfNormalised, Soft, SoftPolicyValue
from dqs_lightning.agents.critic_losses import Quantiles, SquaredError
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.diffusion import Ancestral, Importance
from dqs_lightning.envs import Maze, ObjectivesMaze
from dqs_lightning.envs.transforms import CatFrames
from dqs_lightning.nn.critics import Reduction
from dqs_lightning.nn.objective_critics import ObjectivesPair
from dqs_lightning.run.checkpoint import RunCheckpoint
from dqs_lightning.temperature import Constant

STATE, OBJECTIVES = 2, 3


def make_batch(size: int = 32) -> TensorDict:
    weights = torch.rand(size, OBJECTIVES).softmax(-1)
    vector = torch.randn(size, OBJECTIVES)
    following = {
        "observation": torch.cat([torch.randn(size, STATE), weights], -1),
        "objectives": vector,
        "reward": (weights * vector).sum(-1, keepdim=True),
        "terminated": torch.rand(size, 1) < 0.5,
    }
    observation = torch.cat([torch.randn(size, STATE), weights], -1)
    drawn = {"observation": observation, "action": torch.rand(size, 2) * 2 - 1}
    return TensorDict({**drawn, "next": TensorDict(following, [size])}, [size])


def tiny(**changes: Any) -> MultiObjectiveDQS:
    arguments = {"energy_estimator": Importance(8), "sampler": Ancestral(3), **small(), **changes}
    return MultiObjectiveDQS(STATE + OBJECTIVES, 2, OBJECTIVES, **arguments)


def targets(agent: MultiObjectiveDQS, batch: TensorDict) -> tuple[Tensor, Tensor]:
    """Returns the targets [B, m, M], and the actions of the policy."""
    following = agent.observation_norm(batch["next", "observation"])
    trajectory, _ = agent.trajectories(
        *(agent.condition(rows, agent.temperature()) for rows in (following, following[:0]))
    )
    target = agent.critic_target(batch, following, agent.temperature(), trajectory)
    return target.unflatten(0, (len(batch), OBJECTIVES)), trajectory.action


# Critics


@pytest.mark.parametrize("reduction", ["min", "mean"])
def test_q_is_the_weighted_sum_of_the_objectives(reduction: Reduction) -> None:
    """`value`, `reduce` and `bind` give the reduction of both weighted sums."""
    pair = ObjectivesPair(STATE + OBJECTIVES, 2, OBJECTIVES, None, reduction, outputs=4)
    observation = make_batch(5)["observation"]
    action = torch.rand(7, 5, 2)
    outputs = pair.outputs(observation, action)
    assert outputs.shape == (2, 7, 5 * OBJECTIVES, 4)
    each = outputs.mean(-1).unflatten(-1, (5, OBJECTIVES))
    weighted = (each * observation[:, -OBJECTIVES:]).sum(-1)
    expected = weighted.amin(0) if reduction == "min" else weighted.mean(0)
    torch.testing.assert_close(pair.value(observation, action), expected)
    torch.testing.assert_close(pair.reduce(outputs, observation), expected)
    torch.testing.assert_close(pair.bind(observation, torch.float32)(action), expected)
    torch.testing.assert_close(pair.each(outputs, observation), each.mean(0))


# Targets


def test_targets_bootstrap_each_objective_by_its_own_critic() -> None:
    agent = tiny(discount=0.9, critic_loss=SquaredError(), backup=ExpectedQ())
    batch = make_batch()
    found, action = targets(agent, batch)
    following = batch["next", "observation"]
    outputs = agent.target_critic.outputs(following, action)
    each = agent.target_critic.each(outputs[:, 0], following)
    expected = batch["next", "objectives"] + 0.9 * ~batch["next", "terminated"] * each
    torch.testing.assert_close(found.squeeze(-1), expected)


@pytest.mark.parametrize("backup", [ExpectedQ(), Soft(32, 2), SelfNormalised(32, 2), SoftPolicyValue(3)])
@pytest.mark.parametrize("reduction", ["min", "mean"])
def test_the_weighted_sum_of_the_targets_is_the_target_of_the_weighted_reward(
    backup: Backup, reduction: Reduction
) -> None:
    agent, batch = tiny(critic_loss=SquaredError(), backup=backup, critic_reduction=reduction), make_batch()
    torch.manual_seed(1)
    found, _ = targets(agent, batch)
    following = agent.observation_norm(batch["next", "observation"])
    torch.manual_seed(1)
    trajectory, _ = agent.trajectories(
        *(agent.condition(rows, agent.temperature()) for rows in (following, following[:0]))
    )
    given, _ = agent.backup_input(following, agent.temperature(), trajectory, least=1)
    value = agent.backup.value(given).unsqueeze(-1)
    weights = following[:, -OBJECTIVES:]
    expected = batch["next", "reward"] + 0.99 * ~batch["next", "terminated"] * value
    torch.testing.assert_close((weights * found.squeeze(-1)).sum(-1, keepdim=True), expected)


def test_critics_learn_each_objectives_return_whatever_the_weights() -> None:
    """Where every transition terminates, Q_i is the mean of r_i, for all weights."""
    torch.manual_seed(0)
    agent, batch = tiny(critic_loss=SquaredError()), make_batch(128)
    batch["next", "terminated"] |= True
    batch["next", "objectives"] = batch["action"].sum(-1, keepdim=True) * torch.tensor([1.0, 0.0, -2.0])
    optimizer = torch.optim.Adam(agent.critic.parameters(), lr=3e-3)
    for _ in range(400):
        loss, _ = agent.losses(batch, with_actor=False)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    other = make_batch(128)["observation"][:, -OBJECTIVES:]
    observation = torch.cat([batch["observation"][:, :STATE], other], -1)
    outputs = agent.critic.outputs(observation, batch["action"])
    torch.testing.assert_close(agent.critic.each(outputs, observation), batch["next", "objectives"], rtol=0, atol=0.5)


# Relabelling


@pytest.mark.parametrize("relabel", [0.0, 0.5, 1.0])
def test_a_share_of_the_rows_receives_new_weights_in_both_observations(relabel: float) -> None:
    batch = make_batch(2_000)
    before, found = batch.clone(), tiny(relabel=relabel).relabelled(batch)
    assert (batch == before).all()  # the batch itself is not changed
    weights = found["observation"][:, -OBJECTIVES:]
    assert torch.equal(weights, found["next", "observation"][:, -OBJECTIVES:])
    changed = (weights != before["observation"][:, -OBJECTIVES:]).any(-1)
    assert float(changed.float().mean()) == pytest.approx(relabel, abs=0.05 if 0 < relabel < 1 else 0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2_000))
    for key in ("observation", ("next", "observation")):
        assert torch.equal(found[key][:, :STATE], before[key][:, :STATE])


def test_weights_are_not_normalised() -> None:
    agent = tiny()
    for _ in range(3):
        agent.update_observation_norm(5 + 3 * make_batch()["observation"])
    observation = make_batch()["observation"]
    found = agent.observation_norm(observation)
    assert torch.equal(found[:, STATE:], observation[:, STATE:])
    assert (found[:, :STATE] < observation[:, :STATE]).all()


# Runs


@pytest.mark.slow
@pytest.mark.parametrize("with_actor", [True, False])
def test_the_losses_compile_as_one_graph(with_actor: bool) -> None:
    torch.compiler.reset()
    agent, batch = tiny(inner_precision="float32"), make_batch()
    found = []
    for losses in (agent.losses, torch.compile(agent.losses, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(1)
        found.append(losses(batch, with_actor))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)


def fit(folder: Path, frames: int, **changes: Any) -> tuple[MultiObjectiveDQS, OnlineData]:
    torch.manual_seed(3)
    data = maze_data(environment=ObjectivesMaze(horizon=7), total_frames=frames, **changes)
    agent = MultiObjectiveDQS(
        data.observation_dim, data.action_dim, data.objectives, **small(), temperature=Constant(0.1)
    )
    last = folder / "last.ckpt"
    run = trainer(folder, [RunCheckpoint(str(folder))])
    run.fit(agent, data, ckpt_path=last if last.exists() else None, weights_only=True)
    return agent, data


@pytest.mark.parametrize("n_steps", [1, 3])
def test_a_continued_run_equals_an_uninterrupted_one_bitwise(n_steps: int, tmp_path: Path) -> None:
    whole, _ = fit(tmp_path / "whole", 160, n_steps=n_steps)
    fit(tmp_path / "parts", 112, n_steps=n_steps)
    parts, _ = fit(tmp_path / "parts", 160, n_steps=n_steps)
    assert whole.state_dict().keys() == parts.state_dict().keys()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name


def test_an_agent_from_its_file_acts_alike(tmp_path: Path) -> None:
    agent, _ = fit(tmp_path, 112)
    loaded = load_agent(tmp_path / "last.ckpt")
    assert isinstance(loaded, MultiObjectiveDQS) and (loaded.objectives, loaded.relabel) == (2, 0.5)
    observation = torch.rand(6, 4)
    assert torch.equal(loaded.act(observation, deterministic=True), agent.act(observation, deterministic=True))


@pytest.mark.parametrize("loss", [SquaredError(), Quantiles(5, 1)])
def test_each_critic_loss_trains(loss: CriticLoss) -> None:
    loss_value, metrics = tiny(critic_loss=loss).losses(make_batch())
    assert torch.isfinite(loss_value) and metrics.keys() >= {"critic_loss", "score_loss"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"environment": Maze()}, "environment=Maze: must be one of MOGym, ObjectivesMaze for MultiObjectiveDQS"),
        ({"transforms": [CatFrames()]}, "transforms.0=CatFrames: must be left out for MultiObjectiveDQS"),
    ],
)
def test_data_without_objectives_and_transforms_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        maze_data(**{"environment": ObjectivesMaze(), **data}).source(MultiObjectiveDQS(4, 2, 2, **small()))


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"objectives=3: must be <= observation_dim=2"):
        MultiObjectiveDQS(2, 2, 3)
    with pytest.raises(ValueError, match=r"backup=Soft with policy_actions=0: MultiObjectiveDQS needs at least 1"):
        tiny(backup=Soft(8, policy_actions=0), critic_loss=SquaredError())
    with pytest.raises(ValueError, match=r"relabel=2: must be in \[0, 1\]"):
        tiny(relabel=2)
    with pytest.raises(ValueError, match=r"tau=0: must be in \(0, 1\]"):
        tiny(tau=0)


def test_only_agents_of_several_objectives_store_the_vector() -> None:
    data = maze_data(environment=ObjectivesMaze())
    key = ("next", "objectives")
    assert key in data.source(MultiObjectiveDQS(4, 2, 2, **small())).keys
    assert key not in data.source(SAC(4, 2, **small())).keys


def test_the_exported_policy_is_that_of_the_agent() -> None:
    agent, observation = tiny(), make_batch()["observation"]
    agent.update_observation_norm(observation)
    found = agent.policy_graph(deterministic=True)(observation)
    torch.testing.assert_close(found, agent.act(observation, deterministic=True))
