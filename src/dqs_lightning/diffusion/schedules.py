"""Noise schedules: the noise level at each diffusion time.

The corruption is variance exploding, x_t = a + sigma(t) eps with t in [0, 1] and eps ~ N(0, I) (arXiv 2410.01312,
section 3; arXiv 2402.06121). A schedule is the function sigma(t).
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from dqs_lightning.ranges import Positive, at_least, check, checked


class NoiseSchedule(ABC):
    """sigma(t): strictly increasing and finite on [0, 1], sigma(0) = sigma_min, sigma(1) = sigma_max.

    Subclass it and write `sigma`, `t_of_sigma` and `dvar_dt`; the subclass can then be named in a config.

    Args:
        sigma_min: smallest noise, in units of the action; > 0.
        sigma_max: largest noise, in units of the action; > sigma_min.
    """

    @checked
    def __init__(self, sigma_min: Positive = 0.03, sigma_max: Positive = 2.0) -> None:
        if not sigma_min < sigma_max:
            raise ValueError(f"sigma_min={sigma_min}: must be < sigma_max={sigma_max}")
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise level at time t in [0, 1], any shape, elementwise."""

    @abstractmethod
    def t_of_sigma(self, sigma: Tensor) -> Tensor:
        """Inverse of `sigma`: the time at which the noise level is sigma, elementwise."""

    @abstractmethod
    def dvar_dt(self, t: Tensor) -> Tensor:
        """d(sigma^2)/dt = g(t)^2, the squared diffusion coefficient, elementwise."""

    def grid(self, steps: int, like: Tensor, end: float = 0.0) -> Tensor:
        """Noise levels of a sampler: sigma at `steps` even times from 1 to 0, then 0. Shape [steps + 1].

        Args:
            steps: >= 1.
            like: gives dtype and device.
            end: the last level before 0, where that is above sigma_min.
        """
        check("steps", steps, at_least(1))
        span = torch.linspace(0, 1, steps, dtype=like.dtype, device=like.device)
        if end > self.sigma_min:
            span = span * (1 - self.t_of_sigma(torch.full_like(span[:1], end)))
        return torch.cat([self.sigma(1 - span), span.new_zeros(1)])

    def draw(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Training noise levels for the rows of `like` [B, d]: t ~ U(0, 1), one in each of B equal strata. [B, 1]."""
        size = like.shape[0]
        u = torch.rand(size, 1, dtype=like.dtype, device=like.device, generator=generator)
        strata = torch.arange(size, dtype=like.dtype, device=like.device).unsqueeze(1)
        return self.sigma((strata + u) / size)


class Geometric(NoiseSchedule):
    """sigma = sigma_min (sigma_max / sigma_min)^t: even steps in log sigma. The paper's schedule.

    The paper's sigma^2 is lower by the constant sigma_min^2, so that it starts at 0; d(sigma^2)/dt is the same.
    """

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def t_of_sigma(self, sigma: Tensor) -> Tensor:
        return torch.log(sigma / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)

    def dvar_dt(self, t: Tensor) -> Tensor:
        return 2 * math.log(self.sigma_max / self.sigma_min) * self.sigma(t) ** 2


class Power(NoiseSchedule):
    """sigma^2 = sigma_min^2 + (sigma_max^2 - sigma_min^2) t^power (iDEM's power schedule, bounded below).

    Args:
        sigma_min: smallest noise.
        sigma_max: largest noise.
        power: exponent of t; > 0. 2 is nearly linear in sigma.
    """

    @checked
    def __init__(self, sigma_min: float = 0.03, sigma_max: float = 2.0, power: Positive = 2.0) -> None:
        super().__init__(sigma_min, sigma_max)
        self.power = power
        self._span = self.sigma_max**2 - self.sigma_min**2

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(self.sigma_min**2 + self._span * t**self.power)

    def t_of_sigma(self, sigma: Tensor) -> Tensor:
        return ((sigma**2 - self.sigma_min**2).clamp_min(0) / self._span) ** (1 / self.power)

    def dvar_dt(self, t: Tensor) -> Tensor:
        return self._span * self.power * t ** (self.power - 1)


class Linear(Power):
    """sigma^2 linear in t: a constant diffusion coefficient (iDEM's linear schedule). Needs many steps."""

    def __init__(self, sigma_min: float = 0.03, sigma_max: float = 2.0) -> None:
        super().__init__(sigma_min, sigma_max, power=1.0)


class Cosine(NoiseSchedule):
    """sigma = tan(theta), theta linear in t: Nichol and Dhariwal's cosine schedule seen as noise-to-signal."""

    def __init__(self, sigma_min: float = 0.03, sigma_max: float = 2.0) -> None:
        super().__init__(sigma_min, sigma_max)
        self._low = math.atan(self.sigma_min)
        self._span = math.atan(self.sigma_max) - self._low

    def sigma(self, t: Tensor) -> Tensor:
        return torch.tan(self._low + self._span * t)

    def t_of_sigma(self, sigma: Tensor) -> Tensor:
        return (torch.atan(sigma) - self._low) / self._span

    def dvar_dt(self, t: Tensor) -> Tensor:
        sigma = self.sigma(t)
        return 2 * sigma * (1 + sigma**2) * self._span


class Karras(NoiseSchedule):
    """sigma^(1/rho) linear in t (EDM, arXiv 2206.00364, equation 5). Larger rho: more steps at low noise.

    Args:
        sigma_min: smallest noise.
        sigma_max: largest noise.
        rho: > 0; 7 is EDM's, 1 is linear in sigma, infinity would be Geometric.
    """

    @checked
    def __init__(self, sigma_min: float = 0.03, sigma_max: float = 2.0, rho: Positive = 7.0) -> None:
        super().__init__(sigma_min, sigma_max)
        self.rho = rho
        self._low: float = self.sigma_min ** (1 / self.rho)
        self._span: float = self.sigma_max ** (1 / self.rho) - self._low

    def sigma(self, t: Tensor) -> Tensor:
        return (self._low + self._span * t) ** self.rho

    def t_of_sigma(self, sigma: Tensor) -> Tensor:
        return (sigma ** (1 / self.rho) - self._low) / self._span

    def dvar_dt(self, t: Tensor) -> Tensor:
        return 2 * self.rho * self._span * (self._low + self._span * t) ** (2 * self.rho - 1)
