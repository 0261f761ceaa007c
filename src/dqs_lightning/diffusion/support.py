"""Supports: the action set, and the latent space in which the diffusion runs.

A support maps between the latent x and the action a, with its Jacobian, so that the distribution that is sampled is
exp(log_prob(a)) on the action set itself.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from dqs_lightning.diffusion import truncated_normal
from dqs_lightning.diffusion.truncated_normal import Proposals, antithetic
from dqs_lightning.ranges import Finite, OpenShare, checked

LogProb = Callable[[Tensor], Tensor]
"""Unnormalised log density: points [..., B, d] -> [..., B]."""


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

    def present(self, values: Tensor, absent: float = 0.0) -> Tensor:
        """Values [..., d], with `absent` in place of those of dimensions that do not exist; here all exist."""
        return values

    def dims(self, dim: int) -> int | Tensor:
        """Number of dimensions that exist, of `dim`: a number, or one for each row."""
        return dim

    def mean(self, values: Tensor) -> Tensor:
        """Mean over rows of the mean over the dimensions that exist: [..., d] -> a scalar."""
        return values.mean()

    def log_volume(self, dim: int) -> float | Tensor:
        """Log volume of the action set in `dim` dimensions; a ValueError where it is not finite."""
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
        """Log density of `draw` at points that broadcast with x [..., d], plus (d / 2) log(2 pi)."""
        return (
            log_normal(points, x, sigma)
            - self.log_mass(x, sigma)
            - self.dims(x.shape[-1]) * torch.log(sigma).squeeze(-1)
        )

    def standard(self) -> tuple["Support", float, float]:
        """(set, center, scale): the same kind of set in standard units u, with action = center + scale u."""
        return self, 0.0, 1.0

    def start(self, x: Tensor, sigma: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Returns a random latent for each x: of a uniform action, or from N(x, sigma^2) without bounds."""
        return self.draw(x, sigma, 1, generator)[0]

    def uniform(self, num: int, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Uniform actions, [num, *like.shape]; a ValueError where the set has no finite volume."""
        raise ValueError(f"{type(self).__name__} has no uniform distribution: its volume is not finite")

    def cover(self, num: int, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Returns evenly spread `uniform` actions: each alone is uniform, but those of one row are not independent.

        Means over them are unbiased and have less variance. They are the points frac(shift + j alpha), j = 1..num, with
        one uniform shift for each row and alpha_i = phi^-i, phi^(d + 1) = phi + 1: the R_d sequence (Roberts, 2018)
        under a Cranley-Patterson rotation. Raises as `uniform` does.
        """
        return self.uniform(num, like, generator)


class Unbounded(Support):
    """All of R^d; the latent is the action."""

    def to_action(self, x: Tensor) -> Tensor:
        return x

    def from_action(self, action: Tensor) -> Tensor:
        return action


@lru_cache
def _evenly(num: int, dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The R_d sequence j alpha mod 1, [num, dim]; cached on its device, since a CUDA graph cannot copy it there."""
    phi = 2.0
    for _ in range(64):  # the fixed point of phi = (1 + phi)^(1 / (d + 1)), a contraction
        phi = (1 + phi) ** (1 / (dim + 1))
    alpha = phi ** -torch.arange(1, dim + 1, dtype=torch.float64, device=device)
    return (torch.arange(1, num + 1, dtype=torch.float64, device=device).unsqueeze(-1) * alpha % 1).to(dtype)


class _Interval(Support):
    """Base class of supports whose action set is the box [low, high]^d."""

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
    """The box [low, high]^d with the action as its own latent; proposals are truncated at the bounds."""

    def standard(self) -> tuple[Support, float, float]:
        return Box(), (self.high + self.low) / 2, (self.high - self.low) / 2

    def to_action(self, x: Tensor) -> Tensor:
        # The derivative at a bound is 1, as inside; that of `clamp` there depends on torch's version.
        inside = (x >= self.low) & (x <= self.high)
        return torch.where(inside, x, self.project(x.detach()))

    def from_action(self, action: Tensor) -> Tensor:
        return action

    def project(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)

    def draw(self, x: Tensor, sigma: Tensor, num: int, generator: torch.Generator | None = None) -> Tensor:
        return truncated_normal.draw(antithetic(num, x, generator), x, sigma, self.low, self.high)

    def propose(self, x: Tensor, sigma: Tensor, num: int, generator: torch.Generator | None = None) -> Proposals:
        return truncated_normal.propose(antithetic(num, x, generator), x, sigma, self.low, self.high)

    def log_mass(self, x: Tensor, sigma: Tensor) -> Tensor:
        return truncated_normal.log_mass(x, sigma, self.low, self.high)


class Tanh(_Interval):
    """The box [low, high]^d as the image of tanh; the latent density includes log |da/dx|.

    Args:
        low: lower bound.
        high: upper bound.
        margin: distance from the bounds, as a share of the half width, that actions keep when mapped to latents.
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
