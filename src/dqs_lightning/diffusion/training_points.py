"""Training points: the noised latents and noise levels at which a denoiser is trained."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from dqs_lightning.diffusion.samplers import Trajectory
from dqs_lightning.diffusion.schedules import NoiseSchedule
from dqs_lightning.ranges import Count, checked

Clean = Callable[[], Tensor]
"""Returns a latent of each distribution, [B, d], to which noise may be added."""


class TrainingPoints(ABC):
    """Chooses the noised points at which the denoiser is trained, for each distribution (state) of a batch.

    Subclass it and write `__call__`; the subclass can then be named in a configuration.

    Attributes:
        trajectories: of the sampler, that are used for each distribution; >= 0.

    Args:
        states: number of distributions of a batch that are used, the first ones; None: all.
        points: M, noised points of each distribution, which may share candidates (see `importance`); >= 1.
    """

    trajectories: int = 0

    @checked
    def __init__(self, states: Count | None = None, points: Count = 1) -> None:
        self.states, self.points = states, points

    @abstractmethod
    def __call__(
        self, trajectory: Trajectory | None, clean: Clean, schedule: NoiseSchedule, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns noised latents x [M, B, d] and their levels sigma [M, B, 1].

        Args:
            trajectory: x [steps, `trajectories`, B, d]; None where `trajectories` is 0.
            clean: see `Clean`.
            schedule: noise levels.
            generator: source of randomness.
        """


class AroundReplayActions(TrainingPoints):
    """x = a + sigma eps around actions a of the replay buffer, t ~ U(0, 1): the paper's choice."""

    def __call__(
        self, trajectory: Trajectory | None, clean: Clean, schedule: NoiseSchedule, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        latents = clean()
        like = latents.expand(self.points, *latents.shape)
        # Rows of all points in one draw: the strata of a distribution's points are 1 / M apart.
        sigma = schedule.draw(like.flatten(0, 1), generator).view(*like.shape[:-1], 1)
        noise = torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)
        return like + sigma * noise, sigma


class OnTrajectory(TrainingPoints):
    """Points of the sampler's own trajectories, at several noise levels of each.

    Noise levels between two of the sampler's are reached by adding noise: x + sqrt(sigma'^2 - sigma^2) eps is at sigma'
    where x is at sigma. Those below the sampler's last level start from the sample itself, at sigma = 0.

    Args:
        states: number of distributions of a batch that are used, the first ones; None: all.
        points: M, noised points of each distribution; >= 1.
        levels: number of them on one trajectory; a divisor of `points`.
    """

    @checked
    def __init__(self, states: Count | None = 64, points: Count = 4, levels: Count = 4) -> None:
        super().__init__(states, points)
        if points % levels:
            raise ValueError(f"levels={levels}: must be a divisor of points={points}")
        self.levels = levels
        self.trajectories = points // levels

    def __call__(
        self, trajectory: Trajectory | None, clean: Clean, schedule: NoiseSchedule, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        assert trajectory is not None
        x = torch.cat([trajectory.x, trajectory.end.unsqueeze(0)])
        visited = torch.cat([trajectory.sigma, trajectory.sigma.new_zeros(1)])
        shape = self.levels, *trajectory.end.shape[:-1], 1
        u = torch.rand(shape, dtype=x.dtype, device=x.device, generator=generator)
        level = torch.arange(self.levels, dtype=x.dtype, device=x.device).view(-1, 1, 1, 1)
        sigma = schedule.sigma(1 - (level + u) / self.levels)
        below = (trajectory.sigma.view(-1, 1, 1, 1, 1) > sigma).sum(0)  # the first visited level that is not above
        x = x.gather(0, below.expand(-1, -1, -1, x.shape[-1]))
        noise = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        x = x + torch.sqrt((sigma**2 - visited[below] ** 2).clamp_min(0)) * noise
        return x.flatten(0, 1), sigma.flatten(0, 1)
