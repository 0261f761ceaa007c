"""Training a denoiser from an energy: at which noised points, and towards what."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from dqs_lightning.diffusion.denoiser import Denoiser
from dqs_lightning.diffusion.estimators import EnergyEstimator, Estimate
from dqs_lightning.diffusion.samplers import Path
from dqs_lightning.diffusion.schedules import NoiseSchedule
from dqs_lightning.diffusion.support import LogProb, Support


class NoisedPoints(ABC):
    """Chooses the noised points of a batch of laws.

    Subclass it and write `__call__`; the subclass can then be named in a config.

    Args:
        states: how many laws of a batch are used, the first ones; None: all.
        points: M, noised points of each law, which may share candidates (see `importance`); >= 1.
    """

    def __init__(self, states: int | None = None, points: int = 1) -> None:
        for name, value in (("states", states), ("points", points)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: allowed is 1 or more")
        self.states, self.points = states, points

    @abstractmethod
    def __call__(
        self,
        path: Callable[[int], Path],
        clean: Callable[[], Tensor],
        schedule: NoiseSchedule,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Noised latents x [M, B, d] and their levels sigma [M, B, 1].

        Args:
            path: draws that many trajectories of the sampler for each law, x [steps, num, B, d].
            clean: gives a latent of each law, [B, d], to which noise may be added.
            schedule: noise levels.
            generator: source of randomness.
        """


class AroundActions(NoisedPoints):
    """x = a + sigma eps around given actions a, t ~ U(0, 1): the paper's, with actions of the replay buffer."""

    def __call__(
        self,
        path: Callable[[int], Path],
        clean: Callable[[], Tensor],
        schedule: NoiseSchedule,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        latents = clean()
        like = latents.expand(self.points, *latents.shape)
        # Rows of all points in one draw: the strata of a law's points lie 1 / M apart.
        sigma = schedule.draw(like.flatten(0, 1), generator).view(*like.shape[:-1], 1)
        noise = torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)
        return like + sigma * noise, sigma


class OnPath(NoisedPoints):
    """Points of the sampler's own trajectories, a number of levels of each, spread over its steps.

    A network that is trained there spends nothing on places that no sample meets. Noise levels between two of the
    sampler's are met by adding noise: x + sqrt(sigma'^2 - sigma^2) eps is at sigma' where x is at sigma.

    Args:
        states: how many laws of a batch are used, the first ones; None: all.
        points: M, noised points of each law; >= 1.
        levels: how many of them lie on one trajectory; a divisor of `points`.
    """

    def __init__(self, states: int | None = 64, points: int = 8, levels: int = 2) -> None:
        super().__init__(states, points)
        if levels < 1 or points % levels:
            raise ValueError(f"levels={levels}: allowed is a divisor of points={points}")
        self.levels = levels

    def __call__(
        self,
        path: Callable[[int], Path],
        clean: Callable[[], Tensor],
        schedule: NoiseSchedule,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        walked = path(self.points // self.levels)
        steps, num, laws, dim = walked.x.shape
        like = walked.x
        u = torch.rand(self.levels, num, laws, 1, dtype=like.dtype, device=like.device, generator=generator)
        first = torch.arange(self.levels, dtype=like.dtype, device=like.device).view(-1, 1, 1, 1)
        place = (first + u) / self.levels * steps
        step = place.long().clamp_max(steps - 1)
        at, before = walked.sigma[step], walked.sigma[(step - 1).clamp_min(0)]
        sigma = schedule.sigma(torch.lerp(schedule.t_of(at), schedule.t_of(before), place - step))
        x = walked.x.gather(0, step.expand(-1, -1, -1, dim))
        noise = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        x = x + torch.sqrt((sigma**2 - at**2).clamp_min(0)) * noise
        return x.flatten(0, 1), sigma.flatten(0, 1)


def match(
    denoiser: Denoiser,
    condition: Tensor | None,
    estimator: EnergyEstimator,
    log_prob: LogProb,
    x: Tensor,
    sigma: Tensor,
    support: Support,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Estimate]:
    """Loss of the denoiser at noised points x [M, B, d], sigma [M, B, 1], and the estimate that was its target.

    Args:
        denoiser: what is trained; its own mean guides the estimator.
        condition: of the laws, [B, c], or None.
        estimator: target of the denoiser from the energy, into which nothing flows back.
        log_prob: unnormalised log density of the action, [..., B, d] -> [..., B].
        x: noised latents.
        sigma: their noise levels.
        support: the action set.
        generator: source of randomness.
    """
    moments = denoiser(x, sigma, condition)
    estimate = estimator(log_prob, x, sigma, support, generator, guide=moments.mean.detach())
    return denoiser.loss(moments, estimate, sigma), estimate
