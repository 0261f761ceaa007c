"""A diffusion model of exp(log_prob(a | condition)): everything that samples from it and trains it, in one module."""

import copy
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from dqs_lightning.diffusion.denoiser import EDM, Denoiser, Preconditioning
from dqs_lightning.diffusion.entropy import log_prob as flow_log_prob
from dqs_lightning.diffusion.entropy import trajectory_entropy
from dqs_lightning.diffusion.estimators import EnergyEstimator, Estimate, Posterior
from dqs_lightning.diffusion.guided import MultiStart
from dqs_lightning.diffusion.masked import _Masked
from dqs_lightning.diffusion.samplers import Denoise, MomentMatched, Moments, Noise, Sampler, Trajectory
from dqs_lightning.diffusion.schedules import Geometric, NoiseSchedule
from dqs_lightning.diffusion.support import Box, LogProb, Support
from dqs_lightning.diffusion.training_points import Clean, OnTrajectory, TrainingPoints
from dqs_lightning.nn.backbones import MLP, Backbone
from dqs_lightning.registry import component, replace


class Diffusion(nn.Module):
    """Learned sampler of exp(log_prob(a | condition)) on a support.

    Each component is an object, or the registered name of one.

    Args:
        dim: dimension d of the action; >= 1.
        condition_dim: dimension c of the condition; 0 where there is none: conditions are then [..., 0].
        noise_schedule: sigma(t). Default: Geometric.
        energy_estimator: the denoiser's target, computed from the energy. Default: MultiStart.
        training_points: where the denoiser is trained. Default: OnTrajectory.
        sampler: from noise to actions. Default: MomentMatched.
        support: the action set and the latent space of the diffusion. Default: Box.
        backbone: hidden layers of the denoiser. Default: MLP.
        preconditioning: how the network's output becomes the denoised mean. Default: EDM.
        exists: returns which dimensions of the action exist for conditions [..., c], [..., d]; the others are 0, and
            are part of no distribution, loss or entropy. None: all exist.

    Raises:
        ValueError: for a name that is not registered.
    """

    denoiser: Denoiser

    def __init__(
        self,
        dim: int,
        condition_dim: int = 0,
        noise_schedule: NoiseSchedule | str | None = None,
        energy_estimator: EnergyEstimator | str | None = None,
        training_points: TrainingPoints | str | None = None,
        sampler: Sampler | str | None = None,
        support: Support | str | None = None,
        backbone: Backbone | str | None = None,
        preconditioning: Preconditioning | str | None = None,
        exists: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.condition_dim, self.exists = dim, condition_dim, exists
        self.noise_schedule = component("noise_schedule", noise_schedule, NoiseSchedule, Geometric)
        self.energy_estimator = component("energy_estimator", energy_estimator, EnergyEstimator, MultiStart)
        self.training_points = component("training_points", training_points, TrainingPoints, OnTrajectory)
        self.sampler = component("sampler", sampler, Sampler, MomentMatched)
        self.support = component("support", support, Support, Box)
        layers = component("backbone", backbone, Backbone, MLP)
        self.add_network(layers, component("preconditioning", preconditioning, Preconditioning, EDM))

    def add_network(self, backbone: Backbone, preconditioning: Preconditioning) -> None:
        """Builds the denoiser."""
        self.denoiser = Denoiser(self.dim, self.condition_dim, backbone, preconditioning=preconditioning)

    @property
    def training_states(self) -> int | None:
        """Number of conditions of a batch, the first ones, that `loss` uses; None: all."""
        return self.training_points.states

    def support_at(self, condition: Tensor) -> Support:
        """Returns the action set for conditions [..., c]: that of the dimensions that exist there."""
        return self.support if self.exists is None else _Masked(self.support, self.exists(condition))

    def with_steps(self, steps: int) -> Self:
        """Returns the same model, parameters shared, with another number of sampling steps."""
        other = copy.copy(self)
        other.sampler = replace(self.sampler, steps=steps)
        return other

    def bind(self, condition: Tensor, dtype: torch.dtype | None = None) -> Denoise:
        """Returns the denoiser for conditions [..., c]; `dtype`: see `Denoiser.bind`."""
        return self.denoiser.bind(condition, dtype)

    @torch.no_grad()
    def trajectory(
        self,
        condition: Tensor,
        num: int | None = None,
        noise: Noise | None = torch.randn_like,
        dtype: torch.dtype | None = None,
    ) -> Trajectory:
        """Draws actions, and returns them with the points that the sampler visited.

        Args:
            condition: [..., c].
            num: independent actions for each condition, [num, ..., d]; None: one, [..., d].
            noise: source of standard normals; None: deterministic.
            dtype: see `Denoiser.bind`.
        """
        like = condition.new_empty(*(() if num is None else (num,)), *condition.shape[:-1], self.dim)
        support = self.support_at(condition)
        drawn = None if noise is None else lambda like: support.present(noise(like))
        return self.sampler.trajectory(self.bind(condition, dtype), self.noise_schedule, support, like, drawn)

    def sample(self, condition: Tensor, num: int | None = None, noise: Noise | None = torch.randn_like) -> Tensor:
        """Draws actions; arguments and shapes are those of `trajectory`."""
        return self.trajectory(condition, num, noise).action

    def loss(
        self,
        log_prob: LogProb,
        condition: Tensor,
        trajectory: Trajectory | None,
        clean: Clean,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Score matching, E_sigma[lambda(sigma) |D(x, sigma, s) - D_K|^2]; gradients into the energy are stopped.

        Args:
            log_prob: log density of actions given the condition, unnormalised: [..., B, d] -> [..., B].
            condition: [B, c].
            trajectory: as the following ones, see `TrainingPoints`.
            clean: of each condition.
            generator: source of randomness.

        Returns:
            The loss, and metrics: `score_target`, the largest |D_K|; `score_loss`; `ess`, the mean effective sample
            size of the estimate D_K.
        """
        x, sigma = self.training_points(trajectory, clean, self.noise_schedule, generator)
        support = self.support_at(condition)
        x = support.present(x)
        moments = self.denoiser(x, sigma, condition)
        estimate = self.estimate(Posterior(log_prob, x, sigma, support, generator, moments.mean.detach()))
        loss = self.denoiser.loss(moments, estimate, sigma, support.mean)
        target = estimate.denoised.abs().amax()
        return loss, {"score_target": target, "score_loss": loss.detach(), "ess": estimate.ess.mean()}

    @torch.no_grad()
    def estimate(self, posterior: Posterior) -> Estimate:
        """Estimates the moments of p(a | x) from the energy, with gradients disabled."""
        return self.energy_estimator.estimate(posterior)

    def entropy(self, trajectory: Trajectory, support: Support | None = None) -> Tensor:
        """Differential entropy of the samples in nats, from trajectories [steps, P, B, d] with P >= 2: [B].

        `support` is that of their conditions (`support_at`); None: all dimensions exist.
        """
        return trajectory_entropy(trajectory, support or self.support, self.sampler.stochastic)

    def log_prob(self, action: Tensor, condition: Tensor) -> Tensor:
        """Log density of the samples' distribution at actions [..., d], in nats: [...]; see `entropy.log_prob`."""
        return flow_log_prob(self.bind(condition), self.noise_schedule, self.support_at(condition), action)


class EnergyDiffusion(Diffusion):
    """Samples without a network: at each step the estimator computes the moments from the energy itself.

    With `Resampling` it is an oracle in one and two dimensions. It has nothing to train.

    Args:
        energy: returns log_prob(a | condition) for conditions [B, c].
        arguments: those of `Diffusion`; backbone, preconditioning and training points are not used.
    """

    training_states = 0

    def __init__(self, energy: Callable[[Tensor], LogProb], *arguments: Any) -> None:
        super().__init__(*arguments)
        self.energy = energy

    def add_network(self, backbone: Backbone, preconditioning: Preconditioning) -> None:
        """Builds none."""

    def loss(self, log_prob: LogProb, condition: Tensor, *_: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns 0, and no metrics."""
        return condition.new_zeros(()), {}

    def bind(self, condition: Tensor, dtype: torch.dtype | None = None) -> Denoise:
        energy, support = self.energy(condition), self.support_at(condition)

        def denoise(x: Tensor, sigma: Tensor) -> Moments:
            found = self.estimate(Posterior(energy, x, sigma, support))
            return Moments(found.denoised, found.second_moment)

        return denoise
