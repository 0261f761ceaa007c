"""Samplers: integrate the reverse diffusion from pure noise to an action.

A sampler knows the first two moments of the posterior p(a | x), its mean D(x, sigma) and, if it wants it, its
variance, and a noise schedule. With the exact moments its law converges to the target as steps grow.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from dqs_lightning.diffusion.estimators import score
from dqs_lightning.diffusion.schedules import NoiseSchedule
from dqs_lightning.diffusion.support import Support
from dqs_lightning.ranges import at_least


class Moments(NamedTuple):
    """Of p(a | x), both [..., d]: `mean` = E[a | x], `variance` = Var[a | x] in each dimension, >= 0."""

    mean: Tensor
    variance: Tensor


Denoise = Callable[[Tensor, Tensor], Moments]
"""(x [..., d], sigma scalar or [..., 1]) -> the moments of p(a | x)."""


class Path(NamedTuple):
    """A sample and how it came about.

    Attributes:
        action: the sample, [..., d].
        end: its latent, [..., d].
        x: the latents at which the denoiser was asked, first to last, [steps, ..., d].
        sigma: their noise levels, falling, [steps].
        mean: the denoised means that it answered, projected, [steps, ..., d].
    """

    action: Tensor
    end: Tensor
    x: Tensor
    sigma: Tensor
    mean: Tensor

    def split(self, shapes: Sequence[tuple[int, ...]]) -> list["Path"]:
        """Paths of [*shape, d] for each shape, of one whose action is [rows, d]."""
        sizes = [math.prod(shape) for shape in shapes]
        parts = (self.action.split(sizes), self.end.split(sizes), self.x.split(sizes, 1), self.mean.split(sizes, 1))
        return [
            Path(action.unflatten(0, to), end.unflatten(0, to), x.unflatten(1, to), self.sigma, mean.unflatten(1, to))
            for to, action, end, x, mean in zip(shapes, *parts, strict=True)
        ]


class Sampler(ABC):
    """Draws actions in `steps` evaluations of the denoiser.

    Subclass it and write `integrate`; the subclass can then be named in a config.

    Args:
        steps: evaluations of the denoiser for one sample; >= 1.

    Raises:
        ValueError: when steps < 1.
    """

    stochastic: ClassVar[bool] = True
    """Whether the steps draw noise, so that the x of a path are those of the corruption of its action."""

    def __init__(self, steps: int = 10) -> None:
        at_least("steps", steps, 1)
        self.steps = int(steps)

    def sample(
        self,
        denoise: Denoise,
        schedule: NoiseSchedule,
        support: Support,
        like: Tensor,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
        noise: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """One action for each row of `like` [..., d] (which gives shape, dtype and device only).

        Args:
            denoise: the moments of p(a | x), conditioned already.
            schedule: noise levels to walk down.
            support: the action set; every denoised mean is projected onto it.
            like: template of the result.
            generator: source of randomness; torch's global one when None.
            deterministic: no noise anywhere: start from x = 0 and take the noise-free steps.
            noise: gives the next standard normals, of like's shape, in place of torch.randn; the first are the start's.
        """
        return self.path(denoise, schedule, support, like, generator, deterministic, noise).action

    def path(
        self,
        denoise: Denoise,
        schedule: NoiseSchedule,
        support: Support,
        like: Tensor,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
        noise: Callable[[], Tensor] | None = None,
    ) -> Path:
        """`sample`, with all that the denoiser was asked on the way."""
        asked: list[tuple[Tensor, Tensor, Tensor]] = []

        def projected(x: Tensor, sigma: Tensor) -> Moments:
            mean, variance = denoise(x, sigma)
            mean = support.project(mean)
            asked.append((x, sigma, mean))
            return Moments(mean, variance)

        def draw() -> Tensor:
            if deterministic:
                return torch.zeros_like(like)
            if noise is not None:
                return noise()
            return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)

        start = schedule.sigma_max * draw()
        end = self.integrate(projected, schedule, start, None if deterministic else draw)
        x, sigma, mean = (torch.stack(column) for column in zip(*asked, strict=True))
        return Path(support.to_action(end), end, x, sigma, mean)

    @abstractmethod
    def integrate(
        self, denoise: Denoise, schedule: NoiseSchedule, x: Tensor, noise: Callable[[], Tensor] | None
    ) -> Tensor:
        """Carry x [..., d] from sigma_max to a clean latent; noise() draws N(0, I), None asks for none."""


class Ancestral(Sampler):
    """The posterior step p(x' | x, a = D): DDPM's ancestral sampling for variance-exploding noise.

    x' = D + r^2 (x - D) + sigma' sqrt(1 - r^2) eps with r = sigma' / sigma. Without noise it is DDIM,
    x' = D + r (x - D). The last step goes to D itself.
    """

    def integrate(
        self, denoise: Denoise, schedule: NoiseSchedule, x: Tensor, noise: Callable[[], Tensor] | None
    ) -> Tensor:
        sigmas = schedule.grid(self.steps, x, self.end(schedule))
        for sigma, sigma_next in pairwise(sigmas[:-1]):
            mean, variance = denoise(x, sigma)
            ratio = sigma_next / sigma
            if noise is None:
                x = mean + ratio * (x - mean)
            else:
                x = mean + ratio**2 * (x - mean) + self.deviation(variance, sigma_next, ratio) * noise()
        return denoise(x, sigmas[-2]).mean

    def deviation(self, variance: Tensor, sigma_next: Tensor, ratio: Tensor) -> Tensor:
        """Standard deviation of x' given x."""
        return sigma_next * torch.sqrt(1 - ratio**2)

    def end(self, schedule: NoiseSchedule) -> float:
        """The level from which the last step goes to D, where that is above sigma_min."""
        return 0.0


class MomentMatched(Ancestral):
    """The normal law with the two moments of p(x' | x), of which `Ancestral` keeps the first only.

    x' given x and a is normal around r^2 x + (1 - r^2) a, and a is not known: its variance V adds
    (1 - r^2)^2 V to that of x'. What `Ancestral` loses by this in a long step is the spread over the modes; with it
    ten steps carry the mode masses that otherwise take fifty. (The optimal covariance of Analytic-DPM,
    arXiv 2201.06503, for each dimension and each x.)

    Args:
        steps: evaluations of the denoiser for one sample; >= 1.
        max_ratio: a step lowers sigma by at most this factor on average; > 1. With too few steps to reach sigma_min
            the last level is above it: five steps are nearer the target so.

    Raises:
        ValueError: when steps < 1 or max_ratio <= 1.
    """

    def __init__(self, steps: int = 10, max_ratio: float = 2.2) -> None:
        super().__init__(steps)
        if not max_ratio > 1:
            raise ValueError(f"max_ratio={max_ratio}: allowed is a number > 1")
        self.max_ratio = float(max_ratio)

    def end(self, schedule: NoiseSchedule) -> float:
        return schedule.sigma_max * self.max_ratio ** (1 - self.steps)

    def deviation(self, variance: Tensor, sigma_next: Tensor, ratio: Tensor) -> Tensor:
        return torch.sqrt(sigma_next**2 * (1 - ratio**2) + (1 - ratio**2) ** 2 * variance)


class EulerMaruyama(Sampler):
    """Euler-Maruyama on the reverse SDE over even times from 1 to 0: the paper's sampler.

    dx = -g^2 score dt + g dw backwards in time, g^2 = d(sigma^2)/dt. Without noise it is Euler on the
    probability-flow ODE, dx = -(g^2 / 2) score dt, which has the same marginals.
    """

    def integrate(
        self, denoise: Denoise, schedule: NoiseSchedule, x: Tensor, noise: Callable[[], Tensor] | None
    ) -> Tensor:
        t = torch.linspace(1, 0, self.steps + 1, dtype=x.dtype, device=x.device)[:-1]
        dt = 1 / self.steps
        for sigma, dvar in zip(schedule.sigma(t), schedule.dvar_dt(t) * dt, strict=True):
            drift = dvar * score(denoise(x, sigma).mean, x, sigma)
            x = x + drift / 2 if noise is None else x + drift + torch.sqrt(dvar) * noise()
        return x


class DPMSolverSDE(Sampler):
    """DPM-Solver++(2M) on the reverse SDE (arXiv 2211.01095): second order by reusing the step before.

    With h = log(sigma / sigma') and D extrapolated to D + (h / 2 h_before) (D - D_before), the step is
    x' = r^2 x + (1 - r^2) D + sigma' sqrt(1 - r^2) eps; without noise, `ProbabilityFlow`'s. Ends in D.
    """

    def integrate(
        self, denoise: Denoise, schedule: NoiseSchedule, x: Tensor, noise: Callable[[], Tensor] | None
    ) -> Tensor:
        sigmas = schedule.grid(self.steps, x)
        before: tuple[Tensor, Tensor] | None = None
        for sigma, sigma_next in pairwise(sigmas[:-1]):
            mean = denoise(x, sigma).mean
            ratio, length = sigma_next / sigma, torch.log(sigma / sigma_next)
            ahead = mean
            if before is not None:
                mean_before, length_before = before
                ahead = mean + length / (2 * length_before) * (mean - mean_before)
            before = mean, length
            if noise is None:
                x = ahead + ratio * (x - ahead)
            else:
                x = ahead + ratio**2 * (x - ahead) + sigma_next * torch.sqrt(1 - ratio**2) * noise()
        return denoise(x, sigmas[-2]).mean


class ProbabilityFlow(DPMSolverSDE):
    """DPM-Solver++(2M) on the probability-flow ODE: second order, random only in its start.

    x' = r x + (1 - r) D with D extrapolated from the step before; one evaluation a step where Heun's takes two.
    """

    stochastic = False

    def integrate(
        self, denoise: Denoise, schedule: NoiseSchedule, x: Tensor, noise: Callable[[], Tensor] | None
    ) -> Tensor:
        return super().integrate(denoise, schedule, x, None)
