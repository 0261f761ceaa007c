"""Diffusion Q-Sampling: an actor-critic whose policy is a diffusion model of exp(Q(s, a) / T) (arXiv 2410.01312)."""

import copy
from functools import partial

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tensordict import TensorDictBase
from torch import Tensor

from dqs_lightning.agents.backups import Backup, Plain
from dqs_lightning.agents.base import STEPS, Agent
from dqs_lightning.agents.critic_losses import CriticLoss, Quantiles
from dqs_lightning.agents.fused import Captured, Compiled, Losses
from dqs_lightning.agents.measured import Measured
from dqs_lightning.diffusion import (
    EDM,
    MLP,
    Backbone,
    Box,
    Denoise,
    Denoiser,
    EnergyEstimator,
    Estimate,
    Geometric,
    LogProb,
    MomentMatched,
    Moments,
    MultiStart,
    NoisedPoints,
    NoiseSchedule,
    OnPath,
    Path,
    Preconditioning,
    Sampler,
    Support,
    match,
    path_entropy,
)
from dqs_lightning.finite import magnitude
from dqs_lightning.nn.critics import CriticPair, soft_update
from dqs_lightning.nn.precision import INNER_PRECISIONS, inner_dtype
from dqs_lightning.ranges import not_negative, positive
from dqs_lightning.temperature import Relative, TargetESS, Temperature


class DQS(Agent):
    """The agent. One `training_step` is one update of critic, denoiser, target critic and temperature.

    Args:
        observation_dim: dimension of the flat observation.
        action_dim: dimension of the action; actions lie in [-1, 1].
        noise_schedule: sigma(t). Default: Geometric(0.03, 2).
        energy_estimator: target of the denoiser from the critic. Default: MultiStart with K = 8.
        noised_points: where the denoiser is trained. Default: OnPath, four points of the sampler's own path at each of
            64 states of the batch; AroundActions is the paper's.
        sampler: from noise to actions. Default: MomentMatched, 6 steps.
        support: the action set and the latent in which the diffusion runs. Default: Box.
        preconditioning: how the score network's output is read. Default: EDM.
        temperature: T. Default: Relative, from a tenth of the spread of Q to a fiftieth.
        backup: V(s') in the critic's target. Default: Plain, the paper's.
        critic_backbone: hidden layers of the critics. Default: MLP, (256, 256), with layer norms.
        actor_backbone: hidden layers of the denoiser. Default: MLP, (256, 256).
        critic_reduction: how Q is made of the two critics: "min" (the paper) or "mean" (see `CriticPair`).
        critic_loss: what the critics learn of the return. Default: Quantiles, its law; SquaredError is the paper's.
        critic_lr: Adam's step size for the critics.
        actor_lr: Adam's step size for the denoiser.
        discount: gamma, in [0, 1].
        tau: share of the online critics taken into the target critics at each update, in (0, 1].
        max_grad_norm: clip each parameter group's gradient to this norm; None: no clipping.
        best_of: actions drawn for each decision, of which the one of highest Q is taken; 1 samples the policy.
        exploration_noise: deviation of the noise on each component of an action that collects, beyond the policy's
            own randomness; >= 0, the paper has none.
        normalise_observations: networks see observations less their running mean, over their deviation.
        amortised: a network learns the denoiser. Without it there is no actor: at each step the sampler asks the
            energy estimator itself, with the critics, for the moments. In few dimensions, with `Resampling`, an oracle.
        compile_losses: let torch.compile fuse the losses of an update: wants a C++ compiler, and a minute once a run.
        cuda_graph: capture losses and gradients of an update as one CUDA graph; on one CUDA device.
        inner_precision: of inner layers in training where no gradient of theirs is wanted (candidates' values, the
            sampler's paths): "float32", "bfloat16", or "auto", which is bfloat16 where the hardware multiplies it.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        noise_schedule: NoiseSchedule | None = None,
        energy_estimator: EnergyEstimator | None = None,
        noised_points: NoisedPoints | None = None,
        sampler: Sampler | None = None,
        support: Support | None = None,
        preconditioning: Preconditioning | None = None,
        temperature: Temperature | None = None,
        backup: Backup | None = None,
        critic_backbone: Backbone | None = None,
        actor_backbone: Backbone | None = None,
        critic_reduction: str = "mean",
        critic_loss: CriticLoss | None = None,
        critic_lr: float = 1e-3,
        actor_lr: float = 3e-3,
        discount: float = 0.99,
        tau: float = 0.02,
        max_grad_norm: float | None = None,
        best_of: int = 1,
        exploration_noise: float = 0.1,
        normalise_observations: bool = True,
        amortised: bool = True,
        inner_precision: str = "auto",
        compile_losses: bool = False,
        cuda_graph: bool = False,
    ) -> None:
        super().__init__(observation_dim, action_dim, max_grad_norm, best_of, normalise_observations)
        for name, value in (("critic_lr", critic_lr), ("actor_lr", actor_lr), ("tau", tau)):
            positive(name, value)
        for name, value in (("discount", discount), ("tau", tau)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value}: allowed is 0 to 1")
        not_negative("exploration_noise", exploration_noise)
        if inner_precision not in INNER_PRECISIONS:
            raise ValueError(f"inner_precision={inner_precision!r}: allowed are {', '.join(INNER_PRECISIONS)}")
        if not amortised and isinstance(temperature, TargetESS):
            raise ValueError("amortised=False: TargetESS measures the actor's target; allowed is another temperature")
        # Resolved before they are saved: a checkpoint keeps its components when a default changes.
        self.noise_schedule = noise_schedule = noise_schedule or Geometric()
        self.energy_estimator = energy_estimator = energy_estimator or MultiStart(num_samples=8)
        self.noised_points = noised_points = noised_points or OnPath()
        self.sampler = sampler = sampler or MomentMatched(steps=6)
        self.support = support = support or Box()
        self.temperature = temperature = temperature or Relative(tau=0.1, end=0.02)
        self.backup = backup = backup or Plain()
        self.critic_loss = critic_loss = critic_loss or Quantiles()
        if critic_loss.policy_actions > backup.policy_actions:
            raise ValueError(
                f"backup={type(backup).__name__} with policy_actions={backup.policy_actions}: "
                f"critic_loss={type(critic_loss).__name__} wants {critic_loss.policy_actions} and more"
            )
        preconditioning = preconditioning or EDM()
        critic_backbone, actor_backbone = critic_backbone or MLP(layer_norm=True), actor_backbone or MLP()
        self.save_hyperparameters()
        self.critic_lr, self.actor_lr = critic_lr, actor_lr
        self.discount, self.tau = discount, tau
        self.exploration_noise = exploration_noise
        self.inner_precision, self.amortised = inner_precision, amortised
        self.compile_losses, self.cuda_graph = compile_losses, cuda_graph
        self.fused_losses: Losses = Compiled(self.losses) if compile_losses else self.losses
        self.captured = Captured(self.fused_losses, self.zero_grad)
        self.critic = CriticPair(observation_dim, action_dim, critic_backbone, critic_reduction, critic_loss.outputs)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.denoiser: Denoiser | None = None
        if amortised:
            self.denoiser = Denoiser(action_dim, observation_dim + 1, actor_backbone, preconditioning=preconditioning)

    def condition(self, observation: Tensor) -> Tensor:
        """What the score network is told: (s, log T), [..., o + 1]."""
        log_temperature = torch.log(self.temperature()).expand(*observation.shape[:-1], 1)
        return torch.cat([self.observation_norm(observation), log_temperature], -1)

    def denoise(self, observation: Tensor, dtype: torch.dtype | None = None) -> Denoise:
        """What the sampler asks at each step, bound to observations [B, o]; inner layers of a network in `dtype`."""
        if self.denoiser is not None:
            return self.denoiser.given(self.condition(observation), dtype)
        log_prob = self.log_prob(observation, self.temperature())

        def estimate(x: Tensor, sigma: Tensor) -> Moments:
            found = self.energy_estimator(log_prob, x, sigma, self.support)
            return Moments(found.denoised, found.spread)

        return estimate

    @torch.no_grad()
    def forward(self, observation: Tensor) -> Tensor:
        """The behaviour policy: an action of the policy for each observation [..., o], and `exploration_noise`."""
        action = self.act(observation)
        if not self.exploration_noise:
            return action
        return (action + self.exploration_noise * torch.randn_like(action)).clamp(-1, 1)

    @torch.no_grad()
    def sample(self, observation: Tensor, num: int = 1, deterministic: bool = False) -> Tensor:
        rows = observation.reshape(-1, self.observation_dim)
        like = rows.new_empty(num, len(rows), self.action_dim)
        drawn = self.sampler.sample(
            self.denoise(rows), self.noise_schedule, self.support, like, deterministic=deterministic
        )
        return drawn.reshape(num, *observation.shape[:-1], self.action_dim)

    @torch.no_grad()
    def path(self, observation: Tensor, num: int = 1) -> Path:
        """`sample` with all that the sampler met on its way."""
        like = observation.new_empty(num, *observation.shape[:-1], self.action_dim)
        return self.sampler.path(self.denoise(observation), self.noise_schedule, self.support, like)

    def entropy(self, path: Path) -> Tensor:
        """Differential entropy of the policy in nats at the states of paths [steps, P, B, d], P >= 2: [B]."""
        return path_entropy(path, self.support, self.sampler.stochastic)

    def q_value(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.critic.value(self.observation_norm(observation), action)

    def log_prob(self, observation: Tensor, temperature: Tensor) -> LogProb:
        """The unnormalised log policy of the paper, log pi(a|s) = Q(s, a) / T + const, Q = min_i Q_i."""
        q_value = self.critic.given(self.observation_norm(observation), self.inner_dtype(observation))
        return lambda action: q_value(action) / temperature

    def inner_dtype(self, like: Tensor) -> torch.dtype:
        """In which the inner layers are multiplied where nothing is learned from them."""
        return inner_dtype(self.inner_precision, like)

    @torch.no_grad()
    def paths(self, batch: TensorDictBase) -> tuple[Path, Path | None]:
        """All trajectories of an update in one pass: those for the backup, at s', and for the noised points, at s.

        Their x are [steps, backup.policy_actions, B, d] and [steps, noised_points.trajectories, states, d].
        """
        here = batch["observation"][: self.noised_points.states if self.amortised else 0]
        following = batch["next", "observation"]
        shapes = (self.backup.policy_actions, len(following)), (self.noised_points.trajectories, len(here))
        rows = torch.cat([following.repeat(shapes[0][0], 1), here.repeat(shapes[1][0], 1)])
        denoise = self.denoise(rows, self.inner_dtype(rows))
        like = rows.new_empty(len(rows), self.action_dim)
        walked = self.sampler.path(denoise, self.noise_schedule, self.support, like)
        at_next, at_here = walked.split(shapes)
        return at_next, at_here if len(at_here.action) else None

    @torch.no_grad()
    def critic_target(self, batch: TensorDictBase, temperature: Tensor, path: Path) -> Tensor:
        """y = r + gamma^n (1 - terminated) V(s'), [B, M], with trajectories of the policy at s', n steps from s.

        M = 1 values stand for the return where its mean is learned, more where its law is.
        """
        following = batch["next"]
        observation = self.observation_norm(following["observation"])
        q_value: LogProb = partial(self.target_critic.value, observation)
        if self.backup.weighs_candidates:
            q_value = self.target_critic.given(observation, self.inner_dtype(observation))
        value = self.backup(
            q_value,
            path.action,
            temperature,
            self.support,
            lambda: self.entropy(path),
        )
        returns = self.critic_loss.returns(value, lambda: self.target_critic.outputs(observation, path.action[0]))
        discount = self.discount ** batch[STEPS] if STEPS in batch else self.discount
        target: Tensor = following["reward"] + discount * ~following["terminated"] * returns
        return target

    def score_loss(self, batch: TensorDictBase, temperature: Tensor, path: Path | None) -> tuple[Tensor, Estimate]:
        """Score matching to the Boltzmann law, E_sigma[lambda(sigma) |D(x, sigma, s) - D_K|^2], and the target.

        D_K comes from the online critics, into which nothing flows back.
        """
        assert self.denoiser is not None
        laws = batch[: self.noised_points.states]
        observation = laws["observation"]
        x, sigma = self.noised_points(path, lambda: self.support.from_action(laws["action"]), self.noise_schedule)
        return match(
            self.denoiser,
            self.condition(observation),
            self.energy_estimator,
            self.log_prob(observation, temperature),
            x,
            sigma,
            self.support,
        )

    def losses(self, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of an update, and what is recorded of it, scalars. Asks the host for no value."""
        temperature = self.temperature()
        at_next, at_here = self.paths(batch)
        outputs = self.critic.outputs(self.observation_norm(batch["observation"]), batch["action"])
        target = self.critic_target(batch, temperature, at_next)
        loss = critic_loss = self.critic_loss.loss(outputs, target)
        metrics = {"critic_target": magnitude(target), "q": outputs.mean(), "critic_loss": critic_loss}
        if self.amortised:
            score_loss, estimate = self.score_loss(batch, temperature, at_here)
            # The two graphs share no parameter: one backward serves both, and plain DDP sees every gradient.
            loss = loss + score_loss
            metrics |= {"score_target": magnitude(estimate.denoised), "score_loss": score_loss}
            metrics["ess"] = estimate.ess.mean()
        return loss, {name: value.detach() for name, value in metrics.items()}

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> None:
        if self.cuda_graph:
            metrics = self.captured(batch)
            self.descend(metrics)
        else:
            loss, metrics = self.fused_losses(batch)
            self.update(loss, metrics)
        self.take_in(batch["observation"])
        soft_update(self.target_critic, self.critic, self.tau)
        self.temperature.step(Measured(self, batch["observation"], metrics.get("ess")))
        self.record(**metrics, **self.temperature.metrics())

    def on_fit_start(self) -> None:
        if self.cuda_graph and (self.device.type != "cuda" or self.trainer.world_size > 1):
            raise MisconfigurationException(
                f"model.cuda_graph=True on {self.trainer.world_size} device(s) of type {self.device.type}: "
                "allowed is one of type cuda"
            )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One Adam, two parameter groups: critics and denoiser."""
        groups = [{"params": list(self.critic.parameters()), "lr": self.critic_lr}]
        if self.denoiser is not None:
            groups.append({"params": list(self.denoiser.parameters()), "lr": self.actor_lr})
        return torch.optim.Adam(groups, fused=True)
