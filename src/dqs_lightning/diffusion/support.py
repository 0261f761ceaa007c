"""Where samples may live, and what that means for a density.

The diffusion runs in a latent x. A support says how x and the action a are related, so that the law that
is sampled is exp(log_prob(a)) ON the action set, never a squashed law of something else.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dqs_lightning.ranges import Finite, OpenShare, checked

LogProb = Callable[[Tensor], Tensor]
"""Unnormalised log density: points [..., B, d] -> [..., B]."""


class Proposals(NamedTuple):
    """Draws from N(x, sigma^2) restricted to the latent set, with what a pathwise gradient needs.

    Attributes:
        points: the draws, [K, B, d].
        dpoint_dx: d points / d x at fixed random numbers (diagonal), broadcastable to [K, B, d].
        dlog_mass_dx: d log P(N(x, sigma^2) in the set) / d x, broadcastable to [B, d].
    """

    points: Tensor
    dpoint_dx: Tensor
    dlog_mass_dx: Tensor


def antithetic(num: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform quantiles [num, *like.shape] in pairs u, 1 - u; each is uniform, pairs are mirrored."""
    half = torch.rand((num + 1) // 2, *like.shape, dtype=like.dtype, device=like.device, generator=generator)
    half = half.clamp_min(torch.finfo(like.dtype).eps / 2)  # an exact 0 has no quantile
    return torch.cat([half, 1 - half])[:num]


def normal_cdf(z: Tensor) -> Tensor:
    """Phi(z) with full relative precision in the lower tail, where torch.special.ndtr gives 0 from -6 in float32."""
    return torch.erfc(z * -math.sqrt(0.5)) / 2


def log_normal(points: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """-|points - x|^2 / 2 sigma^2, [...]: points and x [..., d], sigma [..., 1], in any shapes that broadcast."""
    return (points - x).square().sum(-1) * (-0.5 / sigma.square()).squeeze(-1)


class Support(ABC):
    """The action set, and the map from the diffusion's latent x to an action."""

    @abstractmethod
    def to_action(self, x: Tensor) -> Tensor:
        """Latent [..., d] -> action [..., d], inside the set."""

    @abstractmethod
    def from_action(self, action: Tensor) -> Tensor:
        """Action [..., d] -> latent [..., d]."""

    def project(self, x: Tensor) -> Tensor:
        """The nearest latent inside the latent set; applied to every denoised mean."""
        return x

    def log_prob(self, log_prob: LogProb, x: Tensor) -> Tensor:
        """Log density of the latent, [..., B, d] -> [..., B]: that of the action plus log |da/dx|."""
        return log_prob(self.to_action(x))

    def log_jacobian(self, x: Tensor) -> Tensor:
        """log |da/dx| at latents [..., d]: [...]; 0 where the latent is the action."""
        return self.log_prob(lambda action: action.new_zeros(action.shape[:-1]), x)

    def log_volume(self, dim: int) -> float:
        """Log volume of the action set in `dim` dimensions; that of [-1, 1]^d is d log 2.

        Raises:
            ValueError: when the volume is not finite.
        """
        raise ValueError(f"support={type(self).__name__}: must have a finite volume, as Box and Tanh have")

    def draw(self, x: Tensor, sigma: Tensor, num: int, generator: torch.Generator | None = None) -> Tensor:
        """`num` antithetic draws from N(x, sigma^2) in the latent set: x [..., d], sigma [..., 1] -> [num, ..., d]."""
        half = torch.randn((num + 1) // 2, *x.shape, dtype=x.dtype, device=x.device, generator=generator)
        return x + sigma * torch.cat([half, -half])[:num]

    def propose(self, x: Tensor, sigma: Tensor, num: int, generator: torch.Generator | None = None) -> Proposals:
        """`draw`, with the derivatives of the draws."""
        return Proposals(self.draw(x, sigma, num, generator), x.new_ones(()), x.new_zeros(()))

    def log_mass(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log P(N(x, sigma^2) is inside the latent set): x [..., d], sigma [..., 1] or a scalar -> [...]."""
        return x.new_zeros(x.shape[:-1])

    def proposal_log_prob(self, points: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """Log density of `draw`'s law, x [..., d], at points that broadcast with x: up to one constant for all laws."""
        return log_normal(points, x, sigma) - self.log_mass(x, sigma) - x.shape[-1] * torch.log(sigma).squeeze(-1)

    def standard(self) -> tuple["Support", float, float]:
        """(set, center, scale): the same kind of set in standard units u, with action = center + scale u."""
        return self, 0.0, 1.0

    def start(self, x: Tensor, sigma: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A latent for each x, of x's shape, that could be anywhere: that of a uniform action, or N(x, sigma^2)."""
        return self.draw(x, sigma, 1, generator)[0]

    def uniform(self, num: int, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Uniform actions, [num, *like.shape].

        Raises:
            ValueError: when the set has no finite volume.
        """
        raise ValueError(f"{type(self).__name__} has no uniform law: its volume is not finite")

    def cover(self, num: int, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """`uniform` actions that lie evenly: each alone is uniform, but those of one law avoid one another.

        Means over them are as unbiased and vary less, the more so in few dimensions. They are the points
        frac(shift + j alpha), j = 1..num, with one uniform shift a law and alpha_i = phi^-i, phi^(d + 1) = phi + 1:
        the R_d sequence (Roberts, 2018) under a Cranley-Patterson rotation.

        Raises:
            ValueError: when the set has no finite volume.
        """
        raise ValueError(f"{type(self).__name__} has no uniform law: its volume is not finite")


class Unbounded(Support):
    """All of R^d; the latent is the action."""

    def to_action(self, x: Tensor) -> Tensor:
        return x

    def from_action(self, action: Tensor) -> Tensor:
        return action


@lru_cache
def _evenly(num: int, dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The R_d sequence j alpha mod 1, [num, dim]; kept on its device, since a CUDA graph cannot bring it there."""
    phi = 2.0
    for _ in range(64):  # the fixed point of phi = (1 + phi)^(1 / (d + 1)), a contraction
        phi = (1 + phi) ** (1 / (dim + 1))
    alpha = phi ** -torch.arange(1, dim + 1, dtype=torch.float64, device=device)
    return (torch.arange(1, num + 1, dtype=torch.float64, device=device).unsqueeze(-1) * alpha % 1).to(dtype)


class _Interval(Support):
    """The box [low, high]^d, however it is reached."""

    @checked
    def __init__(self, low: Finite = -1.0, high: Finite = 1.0) -> None:
        if not low < high:
            raise ValueError(f"low={low}: must be < high={high}")
        self.low, self.high = low, high

    def log_volume(self, dim: int) -> float:
        return dim * math.log(self.high - self.low)

    def uniform(self, num: int, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        u = torch.rand(num, *like.shape, dtype=like.dtype, device=like.device, generator=generator)
        return self.low + (self.high - self.low) * u

    def cover(self, num: int, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        shift = torch.rand(like.shape, dtype=like.dtype, device=like.device, generator=generator)
        steps = _evenly(num, like.shape[-1], like.dtype, like.device).reshape(num, *[1] * (like.dim() - 1), -1)
        return self.low + (self.high - self.low) * ((shift + steps) % 1)

    def start(self, x: Tensor, sigma: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.from_action(self.uniform(1, x, generator)[0])


class Box(_Interval):
    """The box [low, high]^d with the action as its own latent; proposals are truncated at the walls."""

    def standard(self) -> tuple[Support, float, float]:
        return Box(), (self.high + self.low) / 2, (self.high - self.low) / 2

    def to_action(self, x: Tensor) -> Tensor:
        return self.project(x)

    def from_action(self, action: Tensor) -> Tensor:
        return action

    def project(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)

    def draw(self, x: Tensor, sigma: Tensor, num: int, generator: torch.Generator | None = None) -> Tensor:
        v = antithetic(num, x, generator)
        z, mirror, *_ = self._quantile(v, x, sigma)
        return (x + sigma * mirror * z).clamp_(self.low, self.high)

    def _quantile(self, v: Tensor, x: Tensor, sigma: Tensor) -> tuple[Tensor, ...]:
        """Quantile v of N(x, sigma^2) within the walls, in deviations, mirrored by the sign that comes with it.

        Then the walls and their CDFs, mirrored: the interval lies in the lower tail, where float32 resolves the CDF.
        """
        below, above = (self.low - x) / sigma, (self.high - x) / sigma
        mirror = torch.where(below + above > 0, -1.0, 1.0)
        lower = torch.where(mirror < 0, -above, below)
        upper = torch.where(mirror < 0, -below, above)
        cdf_lower, cdf_upper = normal_cdf(lower), normal_cdf(upper)
        z = torch.special.ndtri(torch.lerp(cdf_lower, cdf_upper, v))
        # Past eleven deviations the CDF soon underflows in float32; there the normal tail is Rayleigh to 1 %.
        far = upper < -11
        beyond = torch.exp((upper**2 - lower**2) / 2)
        z = torch.where(far, -torch.sqrt(upper**2 - 2 * torch.log(torch.lerp(beyond, beyond.new_ones(()), v))), z)
        z = torch.maximum(torch.minimum(z, upper), lower)
        return z, mirror, lower, upper, cdf_lower, cdf_upper

    def propose(self, x: Tensor, sigma: Tensor, num: int, generator: torch.Generator | None = None) -> Proposals:
        v = antithetic(num, x, generator)
        z, mirror, lower, upper, cdf_lower, cdf_upper = self._quantile(v, x, sigma)
        points = (x + sigma * mirror * z).clamp(self.low, self.high)
        # With F(z) = F(l) + v (F(u) - F(l)) and phi the normal density, dz/dl = (1-v) phi(l) / phi(z), etc.
        slide = (1 - v) * torch.exp((z**2 - lower**2) / 2) + v * torch.exp((z**2 - upper**2) / 2)
        mass = (cdf_upper - cdf_lower).clamp_min(torch.finfo(x.dtype).tiny)
        density_gap = torch.exp(-(lower**2) / 2) - torch.exp(-(upper**2) / 2)
        dlog_mass = density_gap / (math.sqrt(2 * math.pi) * mass)
        dlog_mass = torch.where(upper < -11, upper + 1 / upper, dlog_mass)
        return Proposals(points, (1 - slide).clamp(0, 1), mirror * dlog_mass / sigma)

    def log_mass(self, x: Tensor, sigma: Tensor) -> Tensor:
        below, above = (self.low - x) / sigma, (self.high - x) / sigma
        outside = torch.where(below + above > 0, below, -above)
        # log P(inside) as the difference of two lower tails, in logarithms: exact however far x is outside.
        log_far, log_near = torch.special.log_ndtr(-(outside + (above - below))), torch.special.log_ndtr(-outside)
        inside: Tensor = log_near + torch.log1p(-torch.exp(log_far - log_near))
        return inside.sum(-1)


class Tanh(_Interval):
    """The box [low, high]^d reached by tanh; the latent density carries log |da/dx|.

    Args:
        low: lower wall.
        high: upper wall.
        margin: actions are kept this share of the half width away from the walls when mapped back.
    """

    @checked
    def __init__(self, low: float = -1.0, high: float = 1.0, margin: OpenShare = 1e-3) -> None:
        super().__init__(low, high)
        self.margin = margin
        self._half = (self.high - self.low) / 2
        self._center = (self.high + self.low) / 2

    def standard(self) -> tuple[Support, float, float]:
        return Tanh(margin=self.margin), self._center, self._half

    def to_action(self, x: Tensor) -> Tensor:
        return (self._center + self._half * torch.tanh(x)).clamp(self.low, self.high)

    def from_action(self, action: Tensor) -> Tensor:
        unit = (action - self._center) / self._half
        return torch.atanh(unit.clamp(self.margin - 1, 1 - self.margin))

    def log_prob(self, log_prob: LogProb, x: Tensor) -> Tensor:
        # log sech^2(x) = 2 (log 2 - x - softplus(-2x)), stable for every x.
        log_det = 2 * (math.log(2) - x - F.softplus(-2 * x)) + math.log(self._half)
        density: Tensor = log_prob(self.to_action(x)) + log_det.sum(-1)
        return density
