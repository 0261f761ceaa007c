"""Samplers: integrate the reverse diffusion from pure noise to an action.

A sampler knows a denoiser D(x, sigma) = E[a | x] and a noise schedule. With the exact denoiser its law
converges to the target as steps grow.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from dqs_lightning.diffusion.estimators import score
from dqs_lightning.diffusion.schedules import NoiseSchedule
from dqs_lightning.diffusion.support import Support

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x [..., d], sigma scalar or [..., 1]) -> E[a | x], [..., d]."""


class Sampler(ABC):
    """Draws actions in `steps` evaluations of the denoiser.

    Subclass it and write `integrate`; the subclass can then be named in a config.

    Args:
        steps: evaluations of the denoiser for one sample; >= 1.

    Raises:
        ValueError: when steps < 1.
    """

    def __init__(self, steps: int = 10) -> None:
        if steps < 1:
            raise ValueError(f"steps={steps}: allowed is 1 or more")
        self.steps = int(steps)

    def sample(
        self,
        denoise: Denoise,
        schedule: NoiseSchedule,
        support: Support,
        like: Tensor,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
    ) -> Tensor:
        """One action for each row of `like` [..., d] (which gives shape, dtype and device only).

        Args:
            denoise: the denoised mean, conditioned already.
            schedule: noise levels to walk down.
            support: the action set; every denoised mean is projected onto it.
            like: template of the result.
            generator: source of randomness; torch's global one when None.
            deterministic: no noise anywhere: start from x = 0 and take the noise-free steps.
        """

        def projected(x: Tensor, sigma: Tensor) -> Tensor:
            return support.project(denoise(x, sigma))

        def noise() -> Tensor:
            if deterministic:
                return torch.zeros_like(like)
            return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)

        x = schedule.sigma_max * noise()
        return support.to_action(self.integrate(projected, schedule, x, None if deterministic else noise))

    @abstractmethod
    def integrate(
        self, denoise: Denoise, schedule: NoiseSchedule, x: Tensor, noise: Callable[[], Tensor] | None
    ) -> Tensor:
        """Carry x [..., d] from sigma_max to a clean latent; noise() draws N(0, I), None asks for none."""


class Ancestral(Sampler):
    """The exact posterior step p(x' | x, a = D): DDPM's ancestral sampling for variance-exploding noise.

    x' = D + (sigma'^2 / sigma^2) (x - D) + sigma' sqrt(1 - sigma'^2 / sigma^2) eps. Without noise it is DDIM,
    x' = D + (sigma' / sigma) (x - D). The last step goes to D itself.
    """

    def integrate(
        self, denoise: Denoise, schedule: NoiseSchedule, x: Tensor, noise: Callable[[], Tensor] | None
    ) -> Tensor:
        sigmas = schedule.grid(self.steps, x)
        for sigma, sigma_next in pairwise(sigmas[:-1]):
            denoised = denoise(x, sigma)
            ratio = sigma_next / sigma
            if noise is None:
                x = denoised + ratio * (x - denoised)
            else:
                x = denoised + ratio**2 * (x - denoised) + sigma_next * torch.sqrt(1 - ratio**2) * noise()
        return denoise(x, sigmas[-2])


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
            drift = dvar * score(denoise(x, sigma), x, sigma)
            x = x + drift / 2 if noise is None else x + drift + torch.sqrt(dvar) * noise()
        return x
