"""Samplers: integrate the reverse diffusion from noise to an action.

A sampler uses the first two moments of p(a | x): the denoised mean D(x, sigma) and the variance in each dimension. With
the exact moments the distribution of its samples converges to the target as steps grow.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from dqs_lightning.diffusion.estimators import score
from dqs_lightning.diffusion.schedules import NoiseSchedule
from dqs_lightning.diffusion.support import Support
from dqs_lightning.ranges import Count, checked


class Moments(NamedTuple):
    """Moments of p(a | x), both [..., d]: `mean` = E[a | x], `variance` = Var[a | x] in each dimension, >= 0."""

    mean: Tensor
    variance: Tensor


Denoise = Callable[[Tensor, Tensor], Moments]
"""(x [..., d], sigma scalar or [..., 1]) -> the moments of p(a | x)."""

Noise = Callable[[Tensor], Tensor]
"""Standard normals of a tensor's shape, dtype and device, such as `torch.randn_like`."""


class Visit(NamedTuple):
    """One evaluation of the denoiser: at x [..., d] and sigma (scalar) it gave mean and variance, both [..., d]."""

    x: Tensor
    sigma: Tensor
    mean: Tensor
    variance: Tensor


class Trajectory(NamedTuple):
    """A sample, and the points through which the sampler reached it.

    Attributes:
        action: the sample, [..., d].
        end: its latent, [..., d].
        x: the latents at which the denoiser was evaluated, first to last, [steps, ..., d].
        sigma: their noise levels, decreasing, [steps].
        mean: the denoised means there, projected onto the support, [steps, ..., d].
    """

    action: Tensor
    end: Tensor
    x: Tensor
    sigma: Tensor
    mean: Tensor

    def split(self, shapes: Sequence[tuple[int, ...]]) -> list["Trajectory"]:
        """Splits trajectories whose action is [rows, d] into consecutive parts of [*shape, d] for each shape."""

        def parts(values: Tensor, axis: int) -> list[Tensor]:
            pieces = values.split([math.prod(shape) for shape in shapes], axis)
            return [piece.unflatten(axis, shape) for piece, shape in zip(pieces, shapes, strict=True)]

        action, end, x, mean = parts(self.action, 0), parts(self.end, 0), parts(self.x, 1), parts(self.mean, 1)
        return [Trajectory(a, e, at, self.sigma, m) for a, e, at, m in zip(action, end, x, mean, strict=True)]


class Sampler(ABC):
    """Draws actions with `steps` evaluations of the denoiser.

    Subclass it and write `step`; the subclass can then be named in a configuration.

    Args:
        steps: evaluations of the denoiser for one sample; >= 1.
    """

    stochastic: ClassVar[bool] = True
    """Whether the steps add noise. Then the x of a trajectory are noised versions of its action."""

    ends_at_mean: ClassVar[bool] = True
    """Whether the last step goes to the denoised mean itself."""

    @checked
    def __init__(self, steps: Count = 10) -> None:
        self.steps = steps

    def trajectory(
        self,
        denoise: Denoise,
        schedule: NoiseSchedule,
        support: Support,
        like: Tensor,
        noise: Noise | None = torch.randn_like,
    ) -> Trajectory:
        """Draws one action for each row of `like`, and returns it with the points visited.

        Args:
            denoise: moments of p(a | x), with the condition already bound.
            schedule: noise levels.
            support: the action set; every denoised mean is projected onto it.
            like: gives shape [..., d], dtype and device.
            noise: called first for the start, then once in each stochastic step. None: deterministic, from x = 0.
        """
        x = schedule.sigma_max * (torch.zeros_like(like) if noise is None else noise(like))
        sigma, *following = self.levels(schedule, like).unbind(0)
        visits: list[Visit] = []
        for sigma_next in following:
            mean, variance = denoise(x, sigma)
            visits.append(Visit(x, sigma, support.project(mean), variance))
            if len(visits) == self.steps and self.ends_at_mean:
                x = visits[-1].mean
            else:
                x = self.step(visits, sigma_next, schedule, noise if self.stochastic else None)
            sigma = sigma_next
        columns = (torch.stack(column) for column in list(zip(*visits, strict=True))[:3])
        return Trajectory(support.to_action(x), x, *columns)

    def levels(self, schedule: NoiseSchedule, like: Tensor) -> Tensor:
        """Returns the noise levels of the steps, decreasing, [steps + 1]; dtype and device are those of `like`."""
        return schedule.grid(self.steps, like)

    @abstractmethod
    def step(self, visits: Sequence[Visit], sigma_next: Tensor, schedule: NoiseSchedule, noise: Noise | None) -> Tensor:
        """Returns x [..., d] at sigma_next.

        Args:
            visits: evaluations of the denoiser so far; the last one is at the present x and sigma.
            sigma_next: the next noise level.
            schedule: gives the diffusion coefficient.
            noise: called for standard normals at most once; None: take the deterministic step.
        """


class Ancestral(Sampler):
    """DDPM's ancestral sampling for variance-exploding noise: the posterior step p(x' | x, a = D).

    x' = D + r^2 (x - D) + sigma' sqrt(1 - r^2) eps with r = sigma' / sigma. Without noise it is DDIM,
    x' = D + r (x - D). The last step goes to D itself.
    """

    def step(self, visits: Sequence[Visit], sigma_next: Tensor, schedule: NoiseSchedule, noise: Noise | None) -> Tensor:
        x, sigma, mean, variance = visits[-1]
        ratio = sigma_next / sigma
        if noise is None:
            return mean + ratio * (x - mean)
        return mean + ratio**2 * (x - mean) + self.standard_deviation(variance, sigma_next, ratio) * noise(x)

    def standard_deviation(self, variance: Tensor, sigma_next: Tensor, ratio: Tensor) -> Tensor:
        """Standard deviation of x' given x."""
        return sigma_next * torch.sqrt(1 - ratio**2)


class MomentMatched(Ancestral):
    """The normal distribution with the first two moments of p(x' | x); `Ancestral` matches only the first.

    Given x and a, x' is normal with mean r^2 x + (1 - r^2) a, so that the variance V of a adds (1 - r^2)^2 V to that of
    x'. In a long step this term is the variance over the modes. (The optimal covariance of Analytic-DPM, arXiv
    2201.06503, for each dimension and each x.)

    Args:
        steps: evaluations of the denoiser for one sample; >= 1.
        max_ratio: largest factor by which a step lowers sigma, on average; > 1. With too few steps to reach sigma_min
            the last level is above it, which is closer to the target with five steps.
    """

    @checked
    def __init__(self, steps: int = 10, max_ratio: float = 2.2) -> None:
        super().__init__(steps)
        if not max_ratio > 1:
            raise ValueError(f"max_ratio={max_ratio}: must be > 1")
        self.max_ratio = float(max_ratio)

    def levels(self, schedule: NoiseSchedule, like: Tensor) -> Tensor:
        return schedule.grid(self.steps, like, schedule.sigma_max * self.max_ratio ** (1 - self.steps))

    def standard_deviation(self, variance: Tensor, sigma_next: Tensor, ratio: Tensor) -> Tensor:
        return torch.sqrt(sigma_next**2 * (1 - ratio**2) + (1 - ratio**2) ** 2 * variance)


class EulerMaruyama(Sampler):
    """Euler-Maruyama on the reverse SDE over even times from 1 to 0: the paper's sampler.

    dx = -g^2 score dt + g dw backwards in time, g^2 = d(sigma^2)/dt. Without noise it is Euler on the
    probability-flow ODE, dx = -(g^2 / 2) score dt, which has the same marginals.
    """

    ends_at_mean = False

    def levels(self, schedule: NoiseSchedule, like: Tensor) -> Tensor:
        return schedule.sigma(torch.linspace(1, 0, self.steps + 1, dtype=like.dtype, device=like.device))

    def step(self, visits: Sequence[Visit], sigma_next: Tensor, schedule: NoiseSchedule, noise: Noise | None) -> Tensor:
        x, sigma, mean, _ = visits[-1]
        variance = schedule.dvar_dt(schedule.t_of_sigma(sigma)) / self.steps
        drift = variance * score(mean, x, sigma)
        return x + drift / 2 if noise is None else x + drift + torch.sqrt(variance) * noise(x)


class DPMSolverSDE(Sampler):
    """DPM-Solver++(2M) on the reverse SDE (arXiv 2211.01095): second order by using the previous step.

    With h = log(sigma / sigma') and D extrapolated to D + (h / 2 h_before) (D - D_before), the step is
    x' = r^2 x + (1 - r^2) D + sigma' sqrt(1 - r^2) eps; without noise, that of `ProbabilityFlow`. Ends in D.
    """

    def step(self, visits: Sequence[Visit], sigma_next: Tensor, schedule: NoiseSchedule, noise: Noise | None) -> Tensor:
        x, sigma, mean, _ = visits[-1]
        ratio, extrapolated = sigma_next / sigma, mean
        if len(visits) > 1:
            before = visits[-2]
            length, length_before = torch.log(sigma / sigma_next), torch.log(before.sigma / sigma)
            extrapolated = mean + length / (2 * length_before) * (mean - before.mean)
        if noise is None:
            return extrapolated + ratio * (x - extrapolated)
        return extrapolated + ratio**2 * (x - extrapolated) + sigma_next * torch.sqrt(1 - ratio**2) * noise(x)


class ProbabilityFlow(DPMSolverSDE):
    """DPM-Solver++(2M) on the probability-flow ODE: second order, random only in its start.

    x' = r x + (1 - r) D with D extrapolated from the previous step; one evaluation a step where Heun's method takes
    two.
    """

    stochastic = False
