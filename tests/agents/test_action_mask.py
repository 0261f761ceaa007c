"""Tests of agents on tasks whose actions have different dimensions: those that a task lacks are part of nothing."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import small, trainer
from tensordict import TensorDict
from torch import Tensor
from torchrl.modules import TanhNormal

from dqs_callbacks import FiniteGuard
from dqs_lightning.agents import DQS, PPO, SAC, TD3, Agent, Backup, SquaredError, load_agent
from dqs_lightning.agents.backups import Soft, SoftPolicyValue
from dqs_lightning.agents.masked_normal import MaskedTanhNormal
from dqs_lightning.agents.measured import Measured
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.diffusion import (
    Box,
    Geometric,
    Moments,
    Support,
    Tanh,
    TargetScore,
    Trajectory,
    Unbounded,
)
from dqs_lightning.diffusion.entropy import log_prob, trajectory_entropy
from dqs_lightning.diffusion.masked import _Masked
from dqs_lightning.diffusion.proposals import Component, Mixture
from dqs_lightning.envs import Gym, Maze, MultiTask
from dqs_lightning.run.checkpoint import RunCheckpoint
from dqs_lightning.temperature import Relative

OBSERVATION, DIMS = 6, [3, 1]
"""Observations of four numbers and the one-hot of two tasks, of three dimensions and of one."""


def batch_of(task: int, size: int = 16) -> TensorDict:
    def observations() -> Tensor:
        return torch.cat([torch.randn(size, 4), torch.eye(2)[task].expand(size, 2)], -1)

    following = {"observation": observations(), "reward": torch.randn(size, 1)}
    flags = {name: torch.zeros(size, 1, dtype=torch.bool) for name in ("terminated", "truncated", "done")}
    next_step = TensorDict({**following, **flags}, [size])
    action = 2 * torch.rand(size, 3) - 1
    return TensorDict({"observation": observations(), "action": action, "next": next_step}, [size])


def make(kind: type[Agent], dims: list[int] | None = DIMS, **changes: Any) -> Any:
    torch.manual_seed(0)
    if kind is DQS:
        changes = {"inner_precision": "float32", "compile_losses": False, **changes}
    changes = {"normalise_observations": True, **small((8, 8)), **changes}
    agent: Any = kind(OBSERVATION, 3, action_dims=dims, **changes)
    for parameter in agent.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.4)  # the denoiser's last layer starts at 0
    return agent


def losses(agent: Any, batch: TensorDict) -> Tensor:
    torch.manual_seed(1)
    if isinstance(agent, DQS):
        return agent.losses(batch)[0]
    seen = agent.normalised(batch)
    if isinstance(agent, SAC):
        found = agent.loss(seen)
        return found["loss_qvalue"] + found["loss_actor"] + found["loss_alpha"]
    return agent.loss.value_loss(seen)[0] + agent.loss.actor_loss(seen)[0]


CHANGES: list[tuple[type[Agent], dict[str, Any]]] = [
    (DQS, {}),
    (DQS, {"backup": Soft(), "critic_loss": SquaredError()}),
    (DQS, {"energy_estimator": TargetScore(8), "support": Tanh()}),
    (SAC, {}),
    (TD3, {}),
]


@pytest.mark.parametrize(("kind", "changes"), CHANGES)
def test_losses_and_gradients_do_not_depend_on_what_a_task_lacks(kind: type[Agent], changes: dict[str, Any]) -> None:
    """Neither on these components of actions, nor on the weights with which networks would read or write them."""
    agent, batch = make(kind, **changes), batch_of(1)
    expected = losses(agent, batch)
    gradients = torch.autograd.grad(expected, [p for p in agent.parameters() if p.requires_grad], allow_unused=True)
    batch["action"][:, 1:] = 0.9 - batch["action"][:, 1:]
    assert torch.equal(losses(agent, batch), expected)
    lacked = {"critic": (OBSERVATION, 3), "diffusion": (0, 3)}
    changed = 0
    with torch.no_grad():
        for name, parameter in agent.named_parameters():
            inputs = [start for part, (start, _) in lacked.items() if part in name and name.endswith("first.weight")]
            if "qvalue" in name and parameter.shape[-1:] == (OBSERVATION + 3,):
                inputs = [OBSERVATION]
            for start in inputs:
                parameter[..., start + 1 : start + 3] += 5.0
                changed += 1
            if "last" in name and ("diffusion" in name or "actor" in name):
                outputs = [1, 2, 4, 5] if len(parameter) == 6 else [1, 2]
                parameter[outputs] += 0.5
                changed += 1
    assert changed >= 3
    assert torch.equal(losses(agent, batch), expected)
    again = torch.autograd.grad(
        losses(agent, batch), [p for p in agent.parameters() if p.requires_grad], allow_unused=True
    )
    for one, other in zip(gradients, again, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize("kind", [DQS, SAC, TD3])
def test_actions_are_zero_where_a_task_lacks_them(kind: type[Agent]) -> None:
    agent = make(kind)
    for task, dim in enumerate(DIMS):
        seen = batch_of(task)["observation"]
        for actions in (
            agent.sample(seen, 5),
            agent(seen),
            agent.act(seen, deterministic=True),
            agent.act(seen, best_of=3),
        ):
            assert not actions[..., dim:].any() and actions[..., :dim].all()


@pytest.mark.parametrize("kind", [DQS, SAC, TD3])
def test_q_does_not_depend_on_what_a_task_lacks(kind: type[Agent]) -> None:
    agent, seen = make(kind), batch_of(1)["observation"]
    actions = 2 * torch.rand(4, len(seen), 3) - 1
    other = torch.cat([actions[..., :1], torch.rand(4, len(seen), 2)], -1)
    assert torch.equal(agent.q_value(seen, actions), agent.q_value(seen, other))
    assert not torch.equal(agent.q_value(seen, actions), agent.q_value(seen, actions + 0.1))


@pytest.mark.parametrize("kind", [DQS, SAC, TD3])
def test_tasks_of_equal_dimension_are_an_ordinary_update(kind: type[Agent]) -> None:
    batch = batch_of(0)
    tasks, one = (make(kind, dims, normalise_observations=False) for dims in ([3, 3], None))
    assert torch.equal(losses(tasks, batch), losses(one, batch))


def test_the_one_hot_is_not_normalised() -> None:
    agent, seen = make(DQS), batch_of(1)["observation"]
    agent.update_observation_norm(seen)
    found = agent.observation_norm(seen)
    assert torch.equal(found[:, -2:], seen[:, -2:]) and torch.allclose(found[:, :4].mean(0), torch.zeros(4), atol=1e-5)


@pytest.mark.parametrize("support", [Box(), Tanh(-1.0, 3.0), Unbounded()])
def test_densities_masses_and_entropies_are_those_of_the_existing_dimensions(support: Support) -> None:
    mask = torch.tensor([True, False, True]).expand(5, 3)
    masked, kept = _Masked(support, mask), [0, 2]
    x, sigma = torch.randn(4, 5, 3), torch.rand(4, 5, 1) + 0.1
    x[..., 1] = 0
    drawn = masked.draw(x, sigma, 6)
    assert drawn.shape == (6, 4, 5, 3) and not drawn[..., 1].any()
    torch.testing.assert_close(masked.log_mass(x, sigma), support.log_mass(x[..., kept], sigma))
    torch.testing.assert_close(
        masked.proposal_log_prob(drawn, x, sigma), support.proposal_log_prob(drawn[..., kept], x[..., kept], sigma)
    )
    torch.testing.assert_close(masked.log_jacobian(x), support.log_jacobian(x[..., kept]))
    uniform = 0 if isinstance(support, Unbounded) else 4
    wide, narrow = (
        Mixture(which, [Component(center, sigma, 2)], uniform)
        for which, center in ((masked, x), (support, x[..., kept]))
    )
    points = wide.draw(x[0])
    assert not points[..., 1].any()
    torch.testing.assert_close(wide.log_density(points), narrow.log_density(points[..., kept]))
    levels = torch.tensor([2.0, 0.9, 0.4, 0.2])
    visited, mean = masked.present(torch.randn(4, 7, 5, 3)), masked.project(torch.randn(4, 7, 5, 3))
    wide_path = Trajectory(mean[-1], mean[-1], visited, levels, mean)
    narrow_path = Trajectory(*(part[..., kept] for part in wide_path[:3]), levels, mean[..., kept])
    torch.testing.assert_close(trajectory_entropy(wide_path, masked), trajectory_entropy(narrow_path, support))


def test_the_likelihood_is_that_of_the_existing_dimensions() -> None:
    """Of a normal distribution with standard deviation .4, whose denoiser is known."""

    def denoise(x: Tensor, sigma: Tensor) -> Moments:
        return Moments(x * 0.16 / (0.16 + sigma**2), torch.zeros_like(x))

    mask, actions = torch.tensor([True, False, True]).expand(6, 3), 0.4 * torch.randn(6, 3)
    actions[:, 1] = 0
    wide = log_prob(denoise, Geometric(), _Masked(Unbounded(), mask), actions)
    torch.testing.assert_close(
        wide, log_prob(denoise, Geometric(), Unbounded(), actions[:, [0, 2]]), atol=1e-4, rtol=1e-4
    )


def test_each_task_has_the_temperature_of_its_own_q() -> None:
    """With `Relative` it is tau times the standard deviation of the task's Q, whatever the scale of another's."""
    agent, batches = make(DQS, temperature=Relative(tau=0.1)), [batch_of(task, 64) for task in range(2)]
    agent.temperature.q_std.add(torch.tensor(5.05))
    agent.temperature_factors.q_std.add(torch.tensor([10.0, 0.1]))
    for batch, expected in zip(batches, (1.0, 0.01), strict=True):
        seen, actions = agent.observation_norm(batch["observation"]), batch["action"]
        condition = agent.condition(seen, agent.temperature())
        torch.testing.assert_close(condition[:, -1].exp(), torch.full((64,), expected))
        log_prob = agent.q_value(batch["observation"], actions) / expected
        torch.testing.assert_close(agent.log_prob(seen, agent.temperature())(actions), log_prob, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(agent.energy(condition)(actions), log_prob, rtol=1e-4, atol=1e-4)
        drawn = agent.diffusion.trajectory(condition, 1)
        assert (agent.backup_input(seen, agent.temperature(), drawn)[0].temperature - expected).abs().max() < 1e-6


@pytest.mark.parametrize("span", [None, (0.5, 2.0)])
def test_an_exported_policy_has_the_temperatures_of_its_tasks(span: tuple[float, float] | None) -> None:
    agent = make(DQS, temperature_range=span).eval()
    agent.temperature_factors.q_std.add(torch.tensor([4.0, 0.5]))
    observation = torch.cat([batch_of(task, 4)["observation"] for task in range(2)])
    inputs = (observation,) if span is None else (observation, torch.full((8, 1), 0.04))
    exported = torch.export.export(agent.policy_graph(deterministic=True), inputs).module()
    before = exported(*inputs)
    expected = agent.sample(observation, deterministic=True, temperature=span and 0.04)[0]
    torch.testing.assert_close(before, expected, rtol=1e-5, atol=1e-6)
    agent.temperature_factors.q_std.add(torch.tensor([0.5, 4.0]), repeats=1_000)
    assert torch.equal(exported(*inputs), before) and not torch.allclose(agent.sample(observation, 1, True)[0], before)


def test_the_standard_deviations_of_tasks_are_those_of_their_own_states() -> None:
    agent, batches = make(DQS), [batch_of(task, 32)["observation"] for task in range(2)]
    both = Measured(agent, torch.stack(batches, 1).flatten(0, 1), None)
    each = both.q_std_of_tasks(agent.temperature_factors)
    torch.testing.assert_close(each.mean(), both.q_std())
    for task, batch in enumerate(batches):
        alone = torch.stack([Measured(agent, batch, None).q_std() for _ in range(20)])
        assert abs(each[task] - alone.mean()) < 4 * alone.std()


def untrained(**changes: Any) -> DQS:
    """A policy whose dimensions are independent and alike, and a Q of 0."""
    torch.manual_seed(0)
    agent = DQS(OBSERVATION, 3, action_dims=DIMS, critic_loss=SquaredError(), **small((8, 8)), **changes)
    for parameter in (*agent.critic.parameters(), *agent.target_critic.parameters()):
        parameter.detach().zero_()
    return agent


def test_the_measured_entropy_is_per_existing_dimension() -> None:
    agent = untrained()
    wide, narrow = (float(Measured(agent, batch_of(task, 64)["observation"], None).entropy()) for task in range(2))
    assert -1 < wide < math.log(2) and narrow == pytest.approx(wide, abs=0.15)


@pytest.mark.parametrize("backup", [Soft(), SoftPolicyValue(16)])
def test_soft_values_use_the_entropy_and_the_volume_of_the_existing_dimensions(backup: Backup) -> None:
    """V of Q = 0 is T (H - log volume), which is proportional to the number of dimensions; for `Soft` it is 0."""
    agent, values = untrained(backup=backup), []
    for task in range(2):
        batch, temperature = batch_of(task, 256), torch.tensor(1.0)
        following = agent.observation_norm(batch["next", "observation"])
        drawn = agent.diffusion.trajectory(agent.condition(following, temperature), 16)
        target = agent.critic_target(batch, following, temperature, drawn) - batch["next", "reward"]
        values.append(float(target.mean()) / agent.discount)
    if isinstance(backup, Soft):
        assert values == pytest.approx([0, 0], abs=0.05)
    else:
        assert values[0] < 0 and values[0] / 3 == pytest.approx(values[1], abs=0.15)


def test_a_masked_normal_is_the_normal_of_the_existing_dimensions() -> None:
    loc, scale, mask = torch.randn(5, 3), torch.rand(5, 3) + 0.1, torch.tensor([True, True, False]).expand(5, 3)
    masked, narrow = MaskedTanhNormal(loc, scale, mask), TanhNormal(loc[:, :2], scale[:, :2])
    action = torch.cat([2 * torch.rand(5, 2) - 1, torch.rand(5, 1)], -1) * 0.9
    torch.testing.assert_close(masked.log_prob(action), narrow.log_prob(action[:, :2]))
    torch.testing.assert_close(masked.deterministic_sample[:, :2], narrow.deterministic_sample)
    drawn, density = masked.rsample_and_log_prob((7,))
    assert drawn.shape == (7, 5, 3) and not drawn[..., 2].any() and not masked.sample()[:, 2].any()
    torch.testing.assert_close(density, narrow.log_prob(drawn[..., :2]), atol=1e-3, rtol=1e-3)


def test_the_entropy_target_of_sac_is_the_mean_over_tasks() -> None:
    assert float(make(SAC).loss.target_entropy) == -2.0


@pytest.mark.parametrize("dims", [[2, 1], [4, 3], [3, 0], []])
def test_dimensions_that_are_not_those_of_the_action_are_refused(dims: list[int]) -> None:
    with pytest.raises(ValueError, match=r"action_dims=.*: must be >= 1, the largest action_dim=3"):
        make(SAC, dims)


def pendulum_and_maze(**changes: Any) -> OnlineData:
    """One action and two."""
    tasks = [Gym("Pendulum-v1", kwargs={"max_episode_steps": 7}), Maze()]
    arguments = {"total_frames": 160, "init_random_frames": 64, "batch_size": 16, "num_envs": 2, **changes}
    return OnlineData(MultiTask(tasks), **arguments)


@pytest.mark.parametrize("kind", [DQS, SAC, TD3])
def test_agents_train_on_several_tasks_and_load_again(kind: type[Agent], tmp_path: Path) -> None:
    data = pendulum_and_maze()
    agent = kind(data.observation_dim, data.action_dim, action_dims=data.action_dims, **small())
    fit = trainer(tmp_path, [FiniteGuard(), RunCheckpoint(str(tmp_path / "checkpoints"))])
    fit.fit(agent, data)
    assert fit.global_step == 96
    loaded = load_agent(tmp_path / "checkpoints" / "last.ckpt")
    seen = torch.randn(4, data.observation_dim)
    seen[:, -2:] = torch.eye(2).repeat(2, 1)
    assert (
        torch.equal(loaded.act(seen, True), agent.eval().act(seen, True)) and not loaded.act(seen, True)[::2, 1].any()
    )
    graph = loaded.policy_graph()
    noise = (torch.randn(graph.draws, 4, 2),) if graph.draws else ()
    assert not graph(seen, *noise)[::2, 1].any()


def test_agents_that_do_not_know_the_tasks_are_refused(tmp_path: Path) -> None:
    data = pendulum_and_maze()
    with pytest.raises(
        ValueError, match=r"SAC: action_dims=None must be \[1, 2\], the dimensions of the tasks of Pend"
    ):
        trainer(tmp_path).fit(SAC(data.observation_dim, data.action_dim), data)
    with pytest.raises(ValueError, match="environment=MultiTask: must be one task for PPO"):
        data.source(PPO(data.observation_dim, data.action_dim, rollout_steps=16, minibatch_size=16))
