"""Tests of DQS: targets and losses follow the paper's equations, and the actor learns the Boltzmann distribution."""

import copy
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import small, small_agent, small_data, trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tensordict import TensorDict
from torch import Tensor

from dqs_callbacks import Diagnostics
from dqs_lightning.agents import DQS, Agent, Backup, CriticLoss, ExpectedQ, Quantiles, Soft, SquaredError, load_agent
from dqs_lightning.agents.backups import SoftPolicyValue
from dqs_lightning.agents.measured import Measured
from dqs_lightning.checkpoint.archive import CheckpointError, atomic_save
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.diffusion import (
    MLP,
    Ancestral,
    AroundReplayActions,
    Backbone,
    Estimate,
    EulerMaruyama,
    Importance,
    Karras,
    MomentMatched,
    MultiStart,
    OnTrajectory,
    Posterior,
    ProbabilityFlow,
    Resampling,
    Sampler,
    SimBa,
    Tanh,
    TargetScore,
    Trajectory,
    Unbounded,
)
from dqs_lightning.envs import ObjectivesMaze
from dqs_lightning.nn.critics import QValue
from dqs_lightning.registry import components
from dqs_lightning.temperature import Constant, LogLinear, Relative, TargetESS, Temperature

pytestmark = pytest.mark.slow


def make_batch(size: int = 32, observation_dim: int = 3, action_dim: int = 2) -> TensorDict:
    following = TensorDict(
        {
            "observation": torch.randn(size, observation_dim),
            "reward": torch.randn(size, 1),
            "terminated": torch.rand(size, 1) < 0.5,
            "truncated": torch.rand(size, 1) < 0.5,
        },
        [size],
    )
    action = torch.rand(size, action_dim) * 2 - 1
    return TensorDict({"observation": torch.randn(size, observation_dim), "action": action, "next": following}, [size])


def tiny(**changes: object) -> DQS:
    arguments = {"energy_estimator": Importance(8), "sampler": Ancestral(3), **small(), **changes}
    return DQS(3, 2, **arguments)


def trajectories(agent: DQS, batch: TensorDict) -> list[Trajectory]:
    seen = (agent.observation_norm(batch[key]) for key in ("observation", ("next", "observation")))
    here, following = (agent.condition(observation, agent.temperature()) for observation in seen)
    return agent.trajectories(following, here[: agent.diffusion.training_states])


def critic_target(agent: DQS, batch: TensorDict, trajectory: Trajectory, temperature: float = 0.1) -> Tensor:
    following = agent.observation_norm(batch["next", "observation"])
    return agent.critic_target(batch, following, torch.tensor(temperature), trajectory)


def estimated_posteriors(agent: DQS, batch: TensorDict) -> list[Posterior]:
    """Returns the posteriors that the energy estimator receives in an update."""
    posteriors: list[Posterior] = []
    estimate = agent.diffusion.energy_estimator.estimate

    def spy(posterior: Posterior) -> Estimate:
        posteriors.append(posterior)
        return estimate(posterior)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(agent.diffusion.energy_estimator, "estimate", spy)
        agent.losses(batch)
    return posteriors


def test_target_bootstraps_from_truncated_and_not_from_terminated_states() -> None:
    changes = {"backup": ExpectedQ(), "critic_reduction": "min", "critic_loss": SquaredError()}
    agent, batch = tiny(discount=0.9, normalise_observations=False, **changes), make_batch()
    trajectory, _ = trajectories(agent, batch)
    target = critic_target(agent, batch, trajectory)
    value = agent.target_critic(batch["next", "observation"], trajectory.action[0]).min(0).values
    reward, terminated = batch["next", "reward"].squeeze(-1), batch["next", "terminated"].squeeze(-1)
    torch.testing.assert_close(target.squeeze(-1), torch.where(terminated, reward, reward + 0.9 * value))
    assert (batch["next", "truncated"].squeeze(-1) & ~terminated).any()


@pytest.mark.parametrize("inner_precision", ["float32", "bfloat16"])
def test_trajectories_depend_on_their_own_states(inner_precision: str) -> None:
    agent = tiny(
        backup=Soft(64, policy_actions=2), training_points=OnTrajectory(5, 6, 2), inner_precision=inner_precision
    )
    torch.nn.init.normal_(agent.diffusion.denoiser.last.weight)
    batch, drawn = make_batch(), []
    for changed in (None, "observation", ("next", "observation")):
        if changed is not None:
            batch = batch.clone()
            batch[changed] = batch[changed] + 1
        torch.manual_seed(1)
        drawn.append(trajectories(agent, batch))
    assert drawn[0][0].action.shape == (2, 32, 2)
    assert drawn[0][1].x.shape == (3, 3, 5, 2)
    (next_0, here_0), (next_1, here_1), (next_2, here_2) = drawn
    assert torch.equal(next_0.action, next_1.action)
    assert not torch.isclose(here_0.action, here_1.action).all(-1).any()
    assert torch.equal(here_1.x, here_2.x)
    assert not torch.isclose(next_1.action, next_2.action).all(-1).any()


def test_training_points_around_replay_actions_need_no_trajectories_of_their_states() -> None:
    agent, batch = tiny(training_points=AroundReplayActions()), make_batch()
    at_next, at_here = trajectories(agent, batch)
    assert not len(at_here.action)
    assert at_next.action.shape == (1, 32, 2)


def test_bad_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="inner_precision=half: must be one of auto, float32, bfloat16"):
        tiny(inner_precision="half")


def test_target_of_quantiles_is_the_return_distribution_of_the_policys_action() -> None:
    agent = tiny(discount=0.9, backup=ExpectedQ(), critic_loss=Quantiles(5, dropped=1), normalise_observations=False)
    batch = make_batch()
    trajectory, _ = trajectories(agent, batch)
    target = critic_target(agent, batch, trajectory)
    pool = (
        agent.target_critic.outputs(batch["next", "observation"], trajectory.action[0]).permute(1, 0, 2).reshape(32, 10)
    )
    kept = pool.sort(-1).values[:, :8]
    alive = ~batch["next", "terminated"]
    torch.testing.assert_close(target, batch["next", "reward"] + 0.9 * alive * kept)


def test_quantiles_need_an_action_of_the_policy() -> None:
    message = "backup=Soft with policy_actions=0: critic_loss=Quantiles needs at least 1"
    with pytest.raises(ValueError, match=message):
        tiny(backup=Soft(8, policy_actions=0), critic_loss=Quantiles())


def test_quantiles_learn_the_distribution_of_a_random_reward() -> None:
    """Rewards are 20 with probability 1/4, else 0: the mean is 5, and a quarter of the quantiles are 20."""
    torch.manual_seed(0)
    agent = tiny(critic_loss=Quantiles(8, dropped=0), critic_lr=1e-2, normalise_observations=False)
    optimizer, batch = agent.configure_optimizers(), make_batch(256)
    batch["observation"].zero_()
    batch["action"].zero_()
    batch["next", "terminated"].fill_(True)
    for _ in range(400):
        batch["next", "reward"] = 20.0 * (torch.rand(256, 1) < 0.25)
        optimizer.zero_grad()
        agent.losses(batch)[0].backward()
        optimizer.step()
    with torch.no_grad():
        outputs = agent.critic.outputs(batch["observation"][:1], batch["action"][:1])
        q_values = agent.critic(batch["observation"][:1], batch["action"][:1])
    torch.testing.assert_close(outputs, torch.tensor([0.0] * 6 + [20.0] * 2).expand_as(outputs), atol=1.0, rtol=0)
    torch.testing.assert_close(q_values, torch.full_like(q_values, 5.0), atol=0.5, rtol=0)


def test_soft_target_is_the_log_mean_exp_of_the_target_critic() -> None:
    backup, batch = Soft(20_000, policy_actions=0), make_batch(4)
    agent = tiny(discount=1.0, backup=backup, critic_loss=SquaredError())
    batch["next", "terminated"][:] = False
    temperature = 0.2
    target = (
        critic_target(agent, batch, trajectories(agent, batch)[0], temperature) - batch["next", "reward"]
    ).squeeze(-1)
    axis = torch.linspace(-1, 1, 201)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 1, 2).expand(-1, 4, 2)
    q = agent.target_critic.value(batch["next", "observation"], grid)
    expected = temperature * (torch.logsumexp(q / temperature, 0) - math.log(len(grid)))
    torch.testing.assert_close(target, expected.detach(), atol=2e-3, rtol=0)


def test_actor_learns_at_the_first_states_of_the_batch() -> None:
    batch = make_batch()
    (posterior,) = estimated_posteriors(tiny(training_points=OnTrajectory(states=5, points=4)), batch)
    assert posterior.x.shape == (4, 5, 2)
    (posterior,) = estimated_posteriors(tiny(training_points=AroundReplayActions()), batch)
    assert posterior.x.shape == (1, 32, 2)


@pytest.mark.parametrize("name", [name for name in components(Temperature) if name not in ("Constant", "LogLinear")])
def test_a_controlled_temperature_changes_during_a_run(name: str, tmp_path: Path) -> None:
    temperature = components(Temperature)[name](**({} if name == "Relative" else {"warmup": 0, "rate": 0.01}))
    before = temperature().item()
    data = small_data(total_frames=480)
    agent = small_agent(data, temperature=temperature)
    trainer(tmp_path).fit(agent, data)
    assert agent.temperature().item() != before
    assert math.isfinite(agent.temperature().item())


@pytest.mark.parametrize("loss", components(CriticLoss))
@pytest.mark.parametrize("name", components(Backup))
def test_every_backup_trains_with_every_critic_loss(name: str, loss: str, tmp_path: Path) -> None:
    data = small_data(total_frames=480)
    agent = small_agent(data, backup=components(Backup)[name](), critic_loss=components(CriticLoss)[loss]())
    trainer(tmp_path).fit(agent, data)
    assert all(torch.isfinite(p).all() for p in agent.parameters())


@pytest.mark.parametrize("sampler", [MomentMatched(8), ProbabilityFlow(8)], ids=lambda s: type(s).__name__)
def test_entropy_of_an_untrained_policy(sampler: Sampler) -> None:
    """The entropy of an untrained policy is that of a normal distribution of standard deviation sigma_data.

    An untrained denoiser is the exact one of that distribution; sigma_max is large, so sampling is nearly exact.
    """
    agent = tiny(sampler=sampler, support=Unbounded(), noise_schedule=Karras(0.01, 5.0))
    entropy = agent.diffusion.entropy(agent.trajectory(torch.randn(4, 3), 512))
    exact = torch.full((4,), math.log(2 * math.pi * math.e * 0.5**2))
    torch.testing.assert_close(entropy, exact, atol=0.6, rtol=0)


def test_the_score_loss_trains_the_denoiser_and_the_critic_loss_the_critics() -> None:
    agent, batch = tiny(), make_batch()
    parts = {"critic": agent.critic, "denoiser": agent.diffusion.denoiser, "target": agent.target_critic}
    agent.losses(batch)[0].backward()
    found = {name: [p.grad.clone() for p in part.parameters() if p.grad is not None] for name, part in parts.items()}
    assert not found["target"] and not any(p.requires_grad for p in agent.target_critic.parameters())
    assert any(gradient.abs().sum() > 0 for gradient in found["denoiser"])
    observation = agent.observation_norm(batch["observation"])
    agent.zero_grad()
    torch.manual_seed(3)
    at_next, _ = trajectories(agent, batch)
    target = critic_target(agent, batch, at_next, agent.temperature().item())
    agent.critic_loss.loss(agent.critic.outputs(observation, batch["action"]), target).backward()
    alone = [p.grad.clone() for p in agent.critic.parameters()]
    agent.zero_grad()
    torch.manual_seed(3)
    agent.losses(batch)[0].backward()
    torch.testing.assert_close([p.grad for p in agent.critic.parameters()], alone)  # the score loss adds no gradient


def test_a_run_makes_one_optimizer_step_each_update_and_averages_the_target(tmp_path: Path) -> None:
    data = small_data(total_frames=432)
    agent = small_agent(data, tau=0.25, temperature=LogLinear(1.0, 0.1, 8))
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    fit = trainer(tmp_path, limit_train_batches=1)
    fit.fit(agent, data)
    assert fit.global_step == 1
    for name, value in agent.critic.state_dict().items():
        averaged = torch.lerp(before[f"target_critic.{name}"], value, 0.25)
        torch.testing.assert_close(agent.target_critic.state_dict()[name], averaged)
    assert agent.temperature.updates == Measured.EVERY
    assert agent.temperature().item() == pytest.approx(10 ** (-Measured.EVERY / 8))
    optimizer = agent.optimizers()
    assert len(optimizer.param_groups) == 2
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for m in (agent.critic, agent.diffusion.denoiser) for p in m.parameters()}


def test_gradients_are_clipped_to_the_norm_in_each_group(tmp_path: Path) -> None:
    data = small_data(total_frames=464)
    agent = small_agent(data, max_grad_norm=1e-3)
    fit = trainer(tmp_path, limit_train_batches=1)
    fit.fit(agent, data)
    for group in agent.optimizers().param_groups:
        norm = torch.stack([p.grad.norm() for p in group["params"] if p.grad is not None]).norm()
        assert norm.item() == pytest.approx(1e-3, rel=1e-3)


class Bandit(torch.nn.Module):
    """Critic in closed form: two modes on the line, the right one of a height that depends on the state."""

    def __init__(self, width: float = 0.15) -> None:
        super().__init__()
        self.width = width

    def value(self, observation: Tensor, action: Tensor) -> Tensor:
        left = -((action[..., 0] + 0.5) / self.width).square() / 2
        right = -((action[..., 0] - 0.5) / self.width).square() / 2 + observation[..., 0]
        return torch.logaddexp(left, right)

    def bind(self, observation: Tensor, dtype: torch.dtype) -> QValue:
        return lambda action: self.value(observation, action)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.value(observation, action).expand(2, *action.shape[:-1])


def test_the_actor_learns_the_boltzmann_distribution_of_its_critic_at_each_state() -> None:
    """The samples cover both modes, and the share of the right one is sigmoid(s / T), with T = 1."""
    agent = DQS(1, 1, energy_estimator=Importance(64), **small((64, 64)), temperature=Constant(1.0))
    agent.critic = Bandit()
    optimizer = torch.optim.Adam(agent.diffusion.denoiser.parameters(), 2e-3)
    for _ in range(1500):
        observation = torch.randint(-1, 2, (128, 1)).float()
        temperature, first = torch.tensor(1.0), observation[:64]
        condition = agent.condition(first, temperature)
        _, here = agent.trajectories(condition[:0], condition)
        loss, _ = agent.diffusion.loss(agent.log_prob(first, temperature), condition, here, lambda: torch.empty(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    states = torch.tensor([[-1.0], [0.0], [1.0]])
    actions = agent.sample(states, 4000)[..., 0]
    shares = (actions > 0).float().mean(0)
    torch.testing.assert_close(shares, torch.sigmoid(states[:, 0]), atol=0.06, rtol=0)
    std = torch.where(actions > 0, actions - 0.5, actions + 0.5).std(0)
    torch.testing.assert_close(std, torch.full((3,), 0.15), atol=0.04, rtol=0)


def test_act_and_sample() -> None:
    agent = tiny()
    observation = torch.randn(64, 3)
    assert agent.act(observation).shape == (64, 2)
    assert not torch.equal(agent.act(observation), agent.act(observation))
    assert torch.equal(agent.act(observation, deterministic=True), agent.act(observation, deterministic=True))
    assert agent.act(observation[0]).shape == (2,)
    torch.manual_seed(2)
    candidates = agent.sample(observation, 16)
    torch.manual_seed(2)
    chosen = agent.act(observation, best_of=16)
    best = agent.critic.value(observation, candidates).max(0).values
    torch.testing.assert_close(agent.critic.value(observation, chosen), best)
    assert torch.cat([candidates.flatten(), chosen.flatten()]).abs().max() <= 1


def collected_and_sampled(agent: DQS, observation: Tensor) -> list[Tensor]:
    actions = []
    for draw in (agent, agent.act):
        torch.manual_seed(2)
        actions.append(draw(observation))
    return actions


def test_exploration_noise_is_added_only_while_collecting() -> None:
    observation = torch.randn(4000, 3)
    torch.testing.assert_close(*collected_and_sampled(tiny(exploration_noise=0.0), observation), rtol=0, atol=0)
    collected, sampled = collected_and_sampled(tiny(exploration_noise=0.05), observation)
    inside = sampled.abs() < 0.7
    assert inside.float().mean() > 0.3
    noise = (collected - sampled)[inside]
    assert noise.std() == pytest.approx(0.05, abs=0.003) and noise.mean() == pytest.approx(0, abs=0.005)
    assert tiny(exploration_noise=3.0)(observation).abs().max() == 1


def test_without_an_actor_actions_follow_the_critics() -> None:
    """Samples follow exp(Q/T): with Q = -4 (a - 0.3)^2 and T = 0.5 it is normal with standard deviation 0.25."""
    changes = {"energy_estimator": Resampling(256), "temperature": Constant(0.5), "amortised": False}
    agent = DQS(3, 1, **changes)
    agent.critic.bind = lambda observation, dtype: lambda action: -4 * (action[..., 0] - 0.3).square()
    observation = torch.randn(2, 5, 3)
    actions = agent.sample(observation, 200)
    assert actions.shape == (200, 2, 5, 1)
    assert actions.mean() == pytest.approx(0.3, abs=0.03) and actions.std() == pytest.approx(0.25, abs=0.03)
    assert agent.act(observation[0, 0]).shape == (1,)


def test_without_an_actor_only_the_critics_learn(tmp_path: Path) -> None:
    data = small_data()
    agent = DQS(data.observation_dim, data.action_dim, **small(), energy_estimator=Resampling(8), amortised=False)
    before = copy.deepcopy(agent.critic.state_dict())
    trainer(tmp_path, [Diagnostics(every_updates=50)]).fit(agent, data)
    assert not list(agent.diffusion.parameters())
    assert not any(torch.equal(value, before[name]) for name, value in agent.critic.state_dict().items())
    with pytest.raises(ValueError, match="amortised=False: TargetESS"):
        DQS(3, 2, amortised=False, temperature=TargetESS())


@pytest.mark.parametrize(
    "backbone", [MLP((16, 16)), MLP((16,), layer_norm=True), SimBa(8)], ids=["mlp", "norms", "simba"]
)
@pytest.mark.parametrize(
    "changes", [{}, {"backup": Soft(16)}, {"temperature": Relative()}], ids=["default", "soft", "relative"]
)
def test_every_network_receives_normalised_observations(backbone: Backbone, changes: dict[str, object]) -> None:
    """Losses, actions and Q equal those of an agent without normalisation on a normalised batch."""
    torch.manual_seed(0)
    both = {"critic_backbone": backbone, "actor_backbone": backbone, **changes}
    agent, plain = tiny(**both), tiny(**both, normalise_observations=False)
    plain.load_state_dict({k: v for k, v in agent.state_dict().items() if not k.startswith("observation_norm")})
    batch = make_batch()
    agent.update_observation_norm(100 + 7 * batch["observation"])
    normalised = copy.deepcopy(batch)
    for key in ("observation", ("next", "observation")):
        normalised[key] = agent.observation_norm(batch[key])
    found = []
    for one, data in ((agent, batch), (plain, normalised)):
        torch.manual_seed(1)
        loss, _ = one.losses(data)
        q_std = Measured(one, data["observation"], None).q_std()
        action = one.act(data["observation"], best_of=3)
        found.append((loss, q_std, action, one.q_value(data["observation"], action)))
    torch.testing.assert_close(found[0], found[1])
    assert not torch.equal(normalised["observation"], batch["observation"])


def test_the_policy_is_conditioned_on_the_temperature() -> None:
    agent = tiny(temperature=LogLinear(1.0, 0.01, 100))
    for expected in (0.0, math.log(0.1)):
        condition = agent.condition(torch.randn(5, 3), agent.temperature())
        torch.testing.assert_close(condition[:, 3], torch.full((5,), expected))
        for _ in range(50):
            agent.temperature.step()


@pytest.mark.parametrize("name", components(Backup))
def test_gradients_of_the_target_are_stopped(name: str) -> None:
    agent, batch = tiny(backup=components(Backup)[name]()), make_batch()
    at_next, _ = trajectories(agent, batch)
    assert not critic_target(agent, batch, at_next).requires_grad


def test_every_agent_loads_in_a_fresh_process_from_the_file_alone(tmp_path: Path) -> None:
    actions, observations = {}, {}
    for name in components(Agent):
        more = {"environment": ObjectivesMaze()} if name == "MultiObjectiveDQS" else {}
        data = small_data(total_frames=480, **more)
        sizes = data.observation_dim, data.action_dim
        observations[name] = torch.randn(6, sizes[0])
        changes: dict[str, object] = {"normalise_observations": True}
        if name == "DQS":
            changes |= {"noise_schedule": Karras(rho=5.0), "temperature": LogLinear(2.0, 0.5, 7)}
            changes |= {"critic_loss": Quantiles(5, dropped=1)}
        if name == "PPO":
            changes |= {"rollout_steps": 64}
        if more:
            changes |= {"objectives": data.objectives}
        agent = small_agent(data, **changes) if name == "DQS" else components(Agent)[name](*sizes, **small(), **changes)
        fit = trainer(tmp_path)
        fit.fit(agent, data)
        fit.save_checkpoint(file := tmp_path / f"{name}.ckpt")
        actions[name] = agent.act(observations[name], deterministic=True)
        loaded = load_agent(file)
        if name == "DQS":
            assert isinstance(loaded, DQS)
            assert isinstance(schedule := loaded.diffusion.noise_schedule, Karras) and schedule.rho == 5.0
            assert isinstance(loaded.critic_loss, Quantiles) and loaded.critic_loss.dropped == 1
            torch.testing.assert_close(loaded.temperature(), torch.tensor(0.5))
        assert OnlineData.load_from_checkpoint(file, weights_only=True).environment.name == data.environment.name
    torch.save(observations, tmp_path / "observations.pt")
    script = (
        "import sys, torch; from dqs_lightning.agents import load_agent; from pathlib import Path;"
        "f = Path(sys.argv[1]); o = torch.load(f / 'observations.pt');"
        "found = {file.stem: load_agent(file).act(o[file.stem], deterministic=True) for file in f.glob('*.ckpt')};"
        "torch.save(found, f / 'actions.pt')"
    )
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in this process: rounding depends on the number of threads
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, env=one_thread)
    found = torch.load(tmp_path / "actions.pt")
    assert found.keys() == actions.keys() and len(actions) >= 4
    assert all(torch.equal(found[name], action) for name, action in actions.items())


def test_a_checkpoint_of_other_networks_is_refused(tmp_path: Path) -> None:
    data = small_data(total_frames=480)
    fit = trainer(tmp_path)
    fit.fit(small_agent(data), data)
    fit.save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    content["hyper_parameters"]["critic_backbone"]["init_args"]["hidden"] = [7]
    atomic_save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"does not fit the DQS of this version: .*critic"):
        load_agent(tmp_path / "a.ckpt")


def test_a_checkpoint_of_no_known_agent_is_refused(tmp_path: Path) -> None:
    atomic_save({"agent": "Nobody", "state_dict": {}}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="class Nobody; known are DQS"):
        load_agent(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("critic_lr", -1.0),
        ("actor_lr", 0.0),
        ("tau", 0.0),
        ("tau", 1.5),
        ("discount", 1.1),
        ("max_grad_norm", 0.0),
        ("best_of", 0),
        ("exploration_noise", -0.1),
        ("exploration_noise", float("nan")),
    ],
)
def test_numbers_out_of_range_are_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        tiny(**{key: value})


COMPONENTS = [
    {},
    {"energy_estimator": TargetScore(4), "training_points": AroundReplayActions(), "sampler": EulerMaruyama(3)},
    {"backup": Soft(16, policy_actions=1, widths=(0.1,)), "support": Tanh(), "temperature": LogLinear()},
    {
        "backup": SoftPolicyValue(),
        "energy_estimator": MultiStart(8),
        "noise_schedule": Karras(),
        "temperature": Relative(),
    },
]
COMPONENT_NAMES = ["default", "published", "soft", "soft policy value"]
each_configuration = pytest.mark.parametrize("changes", COMPONENTS, ids=COMPONENT_NAMES)


def test_hyperparameters_contain_the_default_components() -> None:
    saved = DQS(3, 2).hparams
    for name in (
        "noise_schedule",
        "energy_estimator",
        "training_points",
        "sampler",
        "support",
        "temperature",
        "backup",
    ):
        assert saved[name] is not None, name
    assert saved["sampler"].steps == 6


@each_configuration
def test_the_captured_function_gives_the_gradients_of_a_plain_update(changes: dict[str, object]) -> None:
    """A captured update has the metrics and gradients of a plain one.

    Without CUDA the graph is the function itself, so the capture is not tested.
    """
    batch = make_batch()
    agents = [DQS(3, 2, **small(), cuda_graph=graph, **copy.deepcopy(changes)) for graph in (True, False)]
    agents[1].load_state_dict(agents[0].state_dict())
    for with_actor in (True, False, False, True):
        torch.manual_seed(1)
        found = agents[0].captured(batch, with_actor)
        torch.manual_seed(1)
        loss, metrics = agents[1].losses(batch, with_actor)
        agents[1].zero_grad()
        loss.backward()
        assert found.keys() == metrics.keys()
        for name, value in metrics.items():
            assert torch.equal(found[name], value)
        for one, other in zip(agents[0].parameters(), agents[1].parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None)
            assert one.grad is None or torch.equal(one.grad, other.grad)


@pytest.mark.parametrize(
    ("changes", "with_actor"),
    [*((changes, True) for changes in COMPONENTS), (COMPONENTS[0], False)],
    ids=[*COMPONENT_NAMES, "critics only"],
)
def test_the_losses_compile_as_one_graph(changes: dict[str, object], with_actor: bool) -> None:
    """The losses compile without a graph break, and keep their values, gradients and order of random numbers."""
    torch.compiler.reset()
    agent, batch = DQS(3, 2, **small(), inner_precision="float32", **copy.deepcopy(changes)), make_batch()
    found = []
    for losses in (agent.losses, torch.compile(agent.losses, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(1)
        agent.zero_grad()
        loss, metrics = losses(batch, with_actor)
        loss.backward()
        found.append((metrics, [p.grad for p in agent.parameters() if p.grad is not None]))
    (plain, gradients), (compiled, others) = found
    torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-4)
    assert len(gradients) == len(others)
    torch.testing.assert_close(others, gradients, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda agent: pickle.loads(pickle.dumps(agent))], ids=["deepcopy", "pickle"]
)
def test_a_copy_compiles_and_captures_its_own_losses(duplicate: Callable[[DQS], DQS]) -> None:
    """A copied or unpickled agent uses its own parameters in its compiled and captured losses."""
    agent, batch = DQS(3, 2, **small(), compile_losses=True), make_batch()
    with torch.compiler.set_stance("force_eager"):
        for _ in range(3):
            agent.fused_losses(batch)
            agent.captured(batch)
        other = duplicate(agent)
        for parameter in other.parameters():
            parameter.data.zero_()
        torch.manual_seed(1)
        expected, _ = other.losses(batch)
        torch.manual_seed(1)
        found, _ = other.fused_losses(batch)
        torch.manual_seed(1)
        captured = other.captured(batch)
        assert torch.equal(found, expected)
        assert not torch.equal(found, agent.fused_losses(batch)[0])
    assert torch.equal(sum(captured[name] for name in ("critic_loss", "score_loss")), expected)
    assert other.diffusion.denoiser.last.bias.grad is not None


def test_a_graph_without_cuda_is_refused(tmp_path: Path) -> None:
    data = small_data(total_frames=480)
    with pytest.raises(
        MisconfigurationException,
        match=r"cuda_graph=True on 1 device\(s\) of type cpu: must be one",
    ):
        trainer(tmp_path).fit(small_agent(data, cuda_graph=True), data)
