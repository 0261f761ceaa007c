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
from dqs_lightning.ranges import at_least


class NoisedPoints(ABC):
    """Chooses the noised points of a batch of laws.

    Subclass it and write `__call__`; the subclass can then be named in a config.

    Attributes:
        trajectories: of the sampler, that it wants for each law; >= 0.

    Args:
        states: how many laws of a batch are used, the first ones; None: all.
        points: M, noised points of each law, which may share candidates (see `importance`); >= 1.
    """

    trajectories: int = 0

    def __init__(self, states: int | None = None, points: int = 1) -> None:
        for name, value in (("states", states), ("points", points)):
            if value is not None:
                at_least(name, value, 1)
        self.states, self.points = states, points

    @abstractmethod
    def __call__(
        self,
        path: Path | None,
        clean: Callable[[], Tensor],
        schedule: NoiseSchedule,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Noised latents x [M, B, d] and their levels sigma [M, B, 1].

        Args:
            path: `trajectories` of the sampler for each law, x [steps, trajectories, B, d]; None where that is 0.
            clean: gives a latent of each law, [B, d], to which noise may be added.
            schedule: noise levels.
            generator: source of randomness.
        """


class AroundActions(NoisedPoints):
    """x = a + sigma eps around given actions a, t ~ U(0, 1): the paper's, with actions of the replay buffer."""

    def __call__(
        self,
        path: Path | None,
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
    sampler's are met by adding noise: x + sqrt(sigma'^2 - sigma^2) eps is at sigma' where x is at sigma. Those below
    the sampler's last are met from the sample itself, at sigma = 0, so that more steps can be taken later.

    Args:
        states: how many laws of a batch are used, the first ones; None: all.
        points: M, noised points of each law; >= 1.
        levels: how many of them lie on one trajectory; a divisor of `points`.
    """

    def __init__(self, states: int | None = 64, points: int = 4, levels: int = 4) -> None:
        super().__init__(states, points)
        if not 1 <= levels <= points or points % levels:
            raise ValueError(f"levels={levels}: allowed is a divisor of points={points}")
        self.levels = levels
        self.trajectories = points // levels

    def __call__(
        self,
        path: Path | None,
        clean: Callable[[], Tensor],
        schedule: NoiseSchedule,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        assert path is not None
        x = torch.cat([path.x, path.end.unsqueeze(0)])
        met = torch.cat([path.sigma, path.sigma.new_zeros(1)])
        shape = self.levels, *path.end.shape[:-1], 1
        u = torch.rand(shape, dtype=x.dtype, device=x.device, generator=generator)
        level = torch.arange(self.levels, dtype=x.dtype, device=x.device).view(-1, 1, 1, 1)
        sigma = schedule.sigma(1 - (level + u) / self.levels)
        below = (path.sigma.view(-1, 1, 1, 1, 1) > sigma).sum(0)  # the first of the path's levels that is not above
        x = x.gather(0, below.expand(-1, -1, -1, x.shape[-1]))
        noise = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        x = x + torch.sqrt((sigma**2 - met[below] ** 2).clamp_min(0)) * noise
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
