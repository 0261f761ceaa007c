"""Diffusion Q-Sampling: an actor-critic whose policy is a diffusion model of exp(Q(s, a) / T) (arXiv 2410.01312)."""

import copy
from functools import partial

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dqs_lightning.agents.backups import Backup, BackupInput, ExpectedQ
from dqs_lightning.agents.base import STEPS
from dqs_lightning.agents.critic_losses import CriticLoss, Quantiles
from dqs_lightning.agents.diffusion_policy import DiffusionPolicy
from dqs_lightning.agents.fused import Captured, Compilable, CompileLosses, check_capturable
from dqs_lightning.agents.measured import Measured
from dqs_lightning.diffusion.denoiser import EDM, Preconditioning
from dqs_lightning.diffusion.estimators import EnergyEstimator
from dqs_lightning.diffusion.guided import MultiStart
from dqs_lightning.diffusion.process import Diffusion, EnergyDiffusion
from dqs_lightning.diffusion.samplers import MomentMatched, Sampler, Trajectory
from dqs_lightning.diffusion.schedules import Geometric, NoiseSchedule
from dqs_lightning.diffusion.support import Box, LogProb, Support
from dqs_lightning.diffusion.training_points import OnTrajectory, TrainingPoints
from dqs_lightning.finite import magnitude
from dqs_lightning.nn.action_mask import ActionMask
from dqs_lightning.nn.backbones import MLP, Backbone, InnerPrecision, inner_dtype
from dqs_lightning.nn.critics import CriticPair, Reduction, soft_update
from dqs_lightning.ranges import Count, Fraction, NonNegative, Positive, Share, checked
from dqs_lightning.temperature import Relative, TargetESS, Temperature
from dqs_lightning.temperature.range import TemperatureRange
from dqs_lightning.temperature.task_factors import TaskFactors


class DQS(DiffusionPolicy):
    """Diffusion Q-Sampling. A `training_step` updates critics and targets, and at times denoiser and temperature.

    Args:
        observation_dim: dimension of the flat observation.
        action_dim: dimension of the action; actions are in [-1, 1].
        noise_schedule: sigma(t). Default: Geometric(0.03, 2).
        energy_estimator: the denoiser's target, computed from the critics. Default: MultiStart with K = 8.
        training_points: where the denoiser is trained. Default: OnTrajectory; AroundReplayActions is the paper's.
        sampler: from noise to actions. Default: MomentMatched, 6 steps.
        support: the action set and the latent space of the diffusion. Default: Box.
        preconditioning: how the network's output becomes the denoised mean. Default: EDM.
        temperature: T; that of each of several tasks is T times its factor (see `TaskFactors`). Default: Relative, from
            0.1 to 0.02 standard deviations of Q over uniform actions.
        temperature_range: factors of T, low <= 1 <= high, between which the denoiser learns all temperatures, so that
            `sample` can choose one: T of each state is drawn log-uniformly; None: T alone. Backups use T.
        backup: V(s') in the critic's target. Default: ExpectedQ, the paper's.
        critic_backbone: hidden layers of the critics. Default: MLP, (256, 256), with layer norms.
        actor_backbone: hidden layers of the denoiser. Default: MLP, (256, 256).
        critic_reduction: how the two critics become one Q (see `CriticPair`); "min" is the paper's.
        critic_loss: what the critics predict. Default: Quantiles of the return; SquaredError (its mean) is the paper's.
        critic_lr: Adam's step size for the critics; > 0.
        actor_lr: Adam's step size for the denoiser; > 0.
        actor_every: updates of the critics for each one of the denoiser; >= 1.
        discount: gamma, in [0, 1].
        tau: weight of the online critics in each update of the target critics, in (0, 1].
        max_grad_norm: maximum norm of each parameter group's gradient, which is clipped to it; None: no clipping.
        best_of: actions drawn for each decision, of which the one of highest Q is taken; 1 samples the policy.
        exploration_noise: standard deviation of the noise that the behaviour policy adds to each component; >= 0.
        normalise_observations: whether networks receive normalised observations (see `ObservationNorm`).
        amortised: whether a network learns the denoiser; otherwise there is no actor (see `EnergyDiffusion`).
        compile_losses: whether torch.compile fuses the losses; "auto": in runs in which that saves time.
        cuda_graph: whether losses and gradients are captured as one CUDA graph; on one CUDA device.
        inner_precision: of inner layers where they need no gradient; "auto": bfloat16 where the hardware has it.
        action_dims: of several tasks (`MultiTask`), the dimension of each one's action; None: there is one task.
    """

    @checked
    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        noise_schedule: NoiseSchedule | None = None,
        energy_estimator: EnergyEstimator | None = None,
        training_points: TrainingPoints | None = None,
        sampler: Sampler | None = None,
        support: Support | None = None,
        preconditioning: Preconditioning | None = None,
        temperature: Temperature | None = None,
        temperature_range: tuple[Positive, Positive] | None = None,
        backup: Backup | None = None,
        critic_backbone: Backbone | None = None,
        actor_backbone: Backbone | None = None,
        critic_reduction: Reduction = "mean",
        critic_loss: CriticLoss | None = None,
        critic_lr: Positive = 1e-3,
        actor_lr: Positive = 3e-3,
        actor_every: Count = 1,
        discount: Fraction = 0.99,
        tau: Share = 0.02,
        max_grad_norm: Positive | None = None,
        best_of: Count = 1,
        exploration_noise: NonNegative = 0.1,
        normalise_observations: bool = True,
        amortised: bool = True,
        inner_precision: InnerPrecision = "auto",
        compile_losses: CompileLosses = "auto",
        cuda_graph: bool = False,
        action_dims: list[int] | None = None,
    ) -> None:
        super().__init__(observation_dim, action_dim, max_grad_norm, best_of, normalise_observations, action_dims)
        if not amortised and isinstance(temperature, TargetESS):
            raise ValueError("amortised=False: TargetESS measures the actor's target; use another temperature")
        if temperature_range is not None and (not amortised or isinstance(temperature, TargetESS)):
            reason = "TargetESS, which measures the target at T alone" if amortised else "amortised=False, at any T"
            raise ValueError(f"temperature_range={list(temperature_range)}: must be None with {reason}")
        # Resolved before they are saved, so that a checkpoint keeps its components when a default changes.
        noise_schedule, energy_estimator = noise_schedule or Geometric(), energy_estimator or MultiStart(8)
        training_points, sampler = training_points or OnTrajectory(), sampler or MomentMatched(6)
        support, preconditioning = support or Box(), preconditioning or EDM()
        temperature, backup = temperature or Relative(tau=0.1, end=0.02), backup or ExpectedQ()
        critic_loss = critic_loss or Quantiles()
        critic_backbone, actor_backbone = critic_backbone or MLP(layer_norm=True), actor_backbone or MLP()
        critic_loss.check(backup)
        self.save_hyperparameters()
        self.temperature, self.backup, self.critic_loss = temperature, backup, critic_loss
        self.temperature_range = TemperatureRange(*temperature_range or ())
        tasks = len(action_dims or ())
        self.temperature_factors = TaskFactors(tasks) if tasks > 1 else None
        self.critic_lr, self.actor_lr, self.actor_every = critic_lr, actor_lr, actor_every
        self.discount, self.tau = discount, tau
        self.exploration_noise, self.inner_precision, self.amortised = exploration_noise, inner_precision, amortised
        self.cuda_graph, self.fused_losses = cuda_graph, Compilable(self.losses, compile_losses)
        self.captured = Captured(self.fused_losses, self)
        sizes, mask = (observation_dim, action_dim), self.action_mask
        self.critic = CriticPair(*sizes, critic_backbone, critic_reduction, critic_loss.outputs, mask)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        process = Diffusion if amortised else partial(EnergyDiffusion, self.energy)
        components = noise_schedule, energy_estimator, training_points, sampler, support
        exists = ActionMask(mask.action_dims, after=1) if mask else None  # log T follows the one-hot
        self.diffusion = process(action_dim, observation_dim + 1, *components, actor_backbone, preconditioning, exists)

    def trajectories(self, following: Tensor, here: Tensor) -> list[Trajectory]:
        """All trajectories of an update in one pass: at s' for the backup, and at states s for the training points.

        For conditions [B, o + 1] and [states, o + 1], their x are [steps, backup.policy_actions, B, d] and
        [steps, training_points.trajectories, states, d].
        """
        nums = self.backup.policy_actions, self.diffusion.training_points.trajectories
        rows = torch.cat([following.repeat(nums[0], 1), here.repeat(nums[1], 1)])
        both = self.diffusion.trajectory(rows, dtype=inner_dtype(self.inner_precision, rows))
        return both.split([(nums[0], len(following)), (nums[1], len(here))])

    def backup_input(
        self, following: Tensor, temperature: Tensor, trajectory: Trajectory, least: int = 0
    ) -> tuple[BackupInput, Tensor]:
        """Returns the backup's input at states s', and the target critics' outputs at `least` or more actions."""
        used = trajectory.action
        q_value: LogProb = partial(self.target_critic.value, following)
        if self.backup.weighs_candidates:
            q_value = self.target_critic.bind(following, inner_dtype(self.inner_precision, following))
            used = used[: max(least, self.critic_loss.policy_actions)]
        support = self.diffusion.support_at(self.condition(following, temperature))
        entropy = partial(self.diffusion.entropy, trajectory, support)
        outputs = self.target_critic.outputs(following, used)
        policy_q = self.target_critic.reduce(outputs, following)
        temperature = self.of_task(following, temperature)
        return BackupInput(q_value, trajectory.action, policy_q, temperature, support, entropy), outputs

    @torch.no_grad()
    def critic_target(
        self, batch: TensorDictBase, following: Tensor, temperature: Tensor, trajectory: Trajectory
    ) -> Tensor:
        """y = r + gamma^n (1 - terminated) V(s'), [B, M], for M outputs of a critic and s' n steps after s."""
        given, outputs = self.backup_input(following, temperature, trajectory)
        returns = self.critic_loss.returns(self.backup.value(given), outputs)
        discount = self.discount ** batch[STEPS] if STEPS in batch else self.discount
        target: Tensor = batch["next", "reward"] + discount * ~batch["next", "terminated"] * returns
        return target

    def losses(self, batch: TensorDictBase, with_actor: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the loss of an update, and metrics: scalars. No device-to-host sync."""
        temperature = self.temperature()
        observation = self.observation_norm(batch["observation"])
        following = self.observation_norm(batch["next", "observation"])
        here = observation[: self.diffusion.training_states if with_actor else 0]
        here_temperature = self.temperature_range.draw(temperature, here)
        condition = self.condition(here, here_temperature)
        at_next, at_here = self.trajectories(self.condition(following, temperature), condition)
        outputs = self.critic.outputs(observation, batch["action"])
        target = self.critic_target(batch, following, temperature, at_next)
        loss = self.critic_loss.loss(outputs, target)
        metrics = {"critic_target": magnitude(target), "q": outputs.mean(), "critic_loss": loss}
        if with_actor:
            log_prob = self.log_prob(here, here_temperature)
            clean = partial(self.diffusion.support.from_action, batch["action"][: len(here)])
            score_loss, score_metrics = self.diffusion.loss(log_prob, condition, at_here, clean)
            # The two graphs share no parameter: one backward is enough for both, and DDP needs no option.
            loss, metrics = loss + score_loss, metrics | score_metrics
        return loss, {name: value.detach() for name, value in metrics.items()}

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> None:
        with_actor, step, measured_every = self.actor_learns(), self.global_step, self.actor_every * Measured.EVERY
        if self.cuda_graph:
            self.clip_and_step(metrics := self.captured(batch, with_actor))
        else:
            loss, metrics = self.fused_losses(batch, with_actor)
            self.update(loss, metrics, () if with_actor else self.diffusion.parameters())
        self.update_observation_norm(batch["observation"])
        soft_update(self.target_critic, self.critic, self.tau)
        if step % measured_every == 0:
            measured = Measured(self, batch["observation"], metrics.get("ess"))
            self.temperature.step(measured, measured_every)
            if self.temperature_factors:
                self.temperature_factors.q_std.add(measured.q_std_of_tasks(self.temperature_factors), measured_every)
        factors = self.temperature_factors.metrics() if self.temperature_factors else {}
        self.accumulate(**metrics, **self.temperature.metrics(), **factors)

    def on_train_start(self) -> None:
        if self.cuda_graph:
            check_capturable(self.device, self.trainer.world_size)
        self.fused_losses.start(self.trainer.num_training_batches)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One Adam with two parameter groups: critics and diffusion."""
        parts = (self.critic, self.critic_lr), (self.diffusion, self.actor_lr)
        return torch.optim.Adam([{"params": list(part.parameters()), "lr": lr} for part, lr in parts], fused=True)
