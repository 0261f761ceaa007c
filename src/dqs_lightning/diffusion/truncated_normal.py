"""Normal distributions truncated to an interval: draws with their derivatives, and the mass inside.

Each function takes means x [..., d], standard deviations sigma [..., 1] and the bounds of the interval in every
dimension. All are accurate in float32 however far x is outside.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


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


def draw(v: Tensor, x: Tensor, sigma: Tensor, low: float, high: float) -> Tensor:
    """Returns the quantiles v in (0, 1), [K, ..., d], of the truncated normals."""
    z, mirror, *_ = _quantile(v, x, sigma, low, high)
    return (x + sigma * mirror * z).clamp_(low, high)


def propose(v: Tensor, x: Tensor, sigma: Tensor, low: float, high: float) -> Proposals:
    """`draw`, with the derivatives of the draws in x."""
    z, mirror, lower, upper, cdf_lower, cdf_upper = _quantile(v, x, sigma, low, high)
    points = (x + sigma * mirror * z).clamp(low, high)
    # With F(z) = F(l) + v (F(u) - F(l)) and phi the normal density, dz/dl = (1-v) phi(l) / phi(z), etc.
    slide = (1 - v) * torch.exp((z**2 - lower**2) / 2) + v * torch.exp((z**2 - upper**2) / 2)
    mass = (cdf_upper - cdf_lower).clamp_min(torch.finfo(x.dtype).tiny)
    density_gap = torch.exp(-(lower**2) / 2) - torch.exp(-(upper**2) / 2)
    dlog_mass = density_gap / (math.sqrt(2 * math.pi) * mass)
    dlog_mass = torch.where(upper < -11, upper + 1 / upper, dlog_mass)
    return Proposals(points, (1 - slide).clamp(0, 1), mirror * dlog_mass / sigma)


def log_mass(x: Tensor, sigma: Tensor, low: float, high: float) -> Tensor:
    """log P(N(x, sigma^2) is inside in every dimension), [...]."""
    below, above = (low - x) / sigma, (high - x) / sigma
    outside = torch.where(below + above > 0, below, -above)
    # log P(inside) as the difference of two lower tails, in logarithms.
    log_far, log_near = torch.special.log_ndtr(-(outside + (above - below))), torch.special.log_ndtr(-outside)
    inside: Tensor = log_near + torch.log1p(-torch.exp(log_far - log_near))
    return inside.sum(-1)


def _quantile(v: Tensor, x: Tensor, sigma: Tensor, low: float, high: float) -> tuple[Tensor, ...]:
    """Quantile v in units of sigma from x, mirrored by the sign that is returned with it.

    Then the bounds and their CDFs, mirrored: the interval is in the lower tail, where float32 resolves the CDF.
    """
    below, above = (low - x) / sigma, (high - x) / sigma
    mirror = torch.where(below + above > 0, -1.0, 1.0)
    lower = torch.where(mirror < 0, -above, below)
    upper = torch.where(mirror < 0, -below, above)
    cdf_lower, cdf_upper = normal_cdf(lower), normal_cdf(upper)
    z = torch.special.ndtri(torch.lerp(cdf_lower, cdf_upper, v))
    # Beyond eleven standard deviations the CDF soon underflows in float32; the normal tail there is Rayleigh to 1 %.
    far = upper < -11
    beyond = torch.exp((upper**2 - lower**2) / 2)
    z = torch.where(far, -torch.sqrt(upper**2 - 2 * torch.log(torch.lerp(beyond, beyond.new_ones(()), v))), z)
    z = torch.maximum(torch.minimum(z, upper), lower)
    return z, mirror, lower, upper, cdf_lower, cdf_upper
