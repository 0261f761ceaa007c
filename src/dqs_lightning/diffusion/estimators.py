"""Energy estimators: the denoised mean D(x, sigma) = E[a | x] from an energy alone, without samples.

With x = a + sigma eps and a ~ exp(log_prob), Tweedie gives score(x, sigma) = (D - x) / sigma^2. An estimator is a
Monte-Carlo target for D, on which a denoiser regresses. This file has the interface and the estimators that use the
energy's gradient; `importance` has those that weight proposals, and `biased` those that converge to something else.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from dqs_lightning.diffusion.support import LogProb, Support
from dqs_lightning.ranges import Count, Positive, checked

GRADIENT_COST = 2
"""Cost of log_prob with its gradient in the action, in evaluations of log_prob alone."""


class Estimate(NamedTuple):
    """Estimated moments of p(a | x) at noised points x [..., d].

    Attributes:
        denoised: the estimate of E[a | x], [..., d].
        second_moment: the estimate of E[(a - guide)^2 | x] in each dimension, [..., d]; without a guide, around the
            weighted mean of the candidates.
        ess: effective sample size, [...], from 1 to the number of candidates.
    """

    denoised: Tensor
    second_moment: Tensor
    ess: Tensor


def score(denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """Tweedie: grad_x log p_sigma(x) = (D - x) / sigma^2, shape of x."""
    return (denoised - x) / sigma**2


def softmax_weights(log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Self-normalised weights [K, ...] over the first axis, in float32 or better, and their ESS [...]."""
    log_weight = log_weight - log_weight.amax(0)
    if log_weight.dtype in (torch.float16, torch.bfloat16):
        log_weight = log_weight.float()
    weight = torch.softmax(log_weight, 0)
    return weight, 1 / weight.square().sum(0)


def weighted(weight: Tensor, ess: Tensor, points: Tensor, guide: Tensor | None) -> Estimate:
    """Returns the estimate from points [K, ..., d] with weights [K, ...]."""
    weight = weight.to(points.dtype).unsqueeze(-1)
    denoised = (weight * points).sum(0)
    around = denoised if guide is None else guide
    return Estimate(denoised, (weight * (points - around).square()).sum(0), ess)


def gradient_of(log_prob: LogProb, points: Tensor, support: Support) -> tuple[Tensor, Tensor]:
    """Log density of latents [..., B, d] and its gradient in them; gradients into parameters are stopped."""
    with torch.enable_grad():
        # The compiler breaks its graph at autograd.grad, and torch.func's transforms refuse it. A vjp works in both,
        # slower.
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            value, pull_back, *_ = torch.func.vjp(lambda x: support.log_prob(log_prob, x), points.detach())
            (gradient,) = pull_back(torch.ones_like(value))
        else:
            points = points.detach().requires_grad_()
            value = support.log_prob(log_prob, points)
            (gradient,) = torch.autograd.grad(value.sum(), points)
    return value.detach(), gradient.detach()


class Posterior(NamedTuple):
    """p(a | x), proportional to exp(log_prob(a)) N(x; a, sigma^2) on the support, and what an estimator may use.

    Attributes:
        log_prob: unnormalised log density of the ACTION, [..., B, d] -> [..., B].
        x: noised latents, [B, d], or [M, B, d]: M of each row's distribution, which may share candidates.
        sigma: their noise levels, [B, 1], [M, B, 1] or a scalar tensor; > 0.
        support: the action set and its latent.
        generator: source of randomness; torch's global one when None.
        guide: the denoiser's present E[a | x], of x's shape; None where there is none. It may determine the
            proposals, but not the value that an estimator converges to.
    """

    log_prob: LogProb
    x: Tensor
    sigma: Tensor
    support: Support
    generator: torch.Generator | None = None
    guide: Tensor | None = None


class EnergyEstimator(ABC):
    """Estimates the moments of p(a | x) for exp(log_prob) from K evaluations of log_prob a noised point.

    Subclass it and write `estimate`; the subclass can then be named in a configuration. The estimate must not change
    when a constant is added to log_prob, must be finite for K = 1 and at every sigma, and must converge to quadrature
    as K grows (or the docstring says that it does not).

    Args:
        num_samples: K, evaluations of log_prob for each noised point; >= 1.
    """

    @checked
    def __init__(self, num_samples: Count = 32) -> None:
        self.num_samples = num_samples

    pools: bool = False
    """Whether the M points of a distribution share their candidates, so that each has M K of them."""

    def cost(self, points: int = 1) -> int:
        """Evaluations of log_prob for this many noised points; one with its gradient counts `GRADIENT_COST`."""
        return points * self.num_samples

    @abstractmethod
    def estimate(self, posterior: Posterior) -> Estimate:
        """Returns the moments of p(a | x). Called with gradients disabled."""


class _Pathwise(EnergyEstimator):
    """Truncated normal proposals with the gradient of log_prob pulled back to x, and their weights."""

    def cost(self, points: int = 1) -> int:
        return points * GRADIENT_COST * self.num_samples

    @abstractmethod
    def denoised(self, posterior: Posterior, points: Tensor, pulled_back: Tensor, weight: Tensor) -> Tensor:
        """Returns D from points, each one's share of the score, both [K, ..., d], and weights [K, ..., 1]."""

    def estimate(self, posterior: Posterior) -> Estimate:
        log_prob, x, sigma, support, generator, guide = posterior
        points, dpoint_dx, dlog_mass_dx = support.propose(x, sigma, self.num_samples, generator)
        log_weight, gradient = gradient_of(log_prob, points, support)
        weight, ess = softmax_weights(log_weight)
        column = weight.to(x.dtype).unsqueeze(-1)
        denoised = self.denoised(posterior, points, gradient * dpoint_dx + dlog_mass_dx, column)
        return weighted(weight, ess, points, guide)._replace(denoised=denoised)


class TargetScore(_Pathwise):
    """D = x + sigma^2 s_K, s_K = grad_x log (1/K) sum_k exp(log_prob(a_k)), a_k = x + sigma eps_k: the paper.

    iDEM's estimator (arXiv 2402.06121, equation 8; arXiv 2410.01312): s_K = sum_k w_k grad log_prob(a_k). On a box the
    gradient is taken through proposals truncated at the bounds, which adds da_k/dx and the gradient of the log mass
    inside. Best where sigma is far below the width of a mode; above it the variance grows without limit.

    Args:
        num_samples: K; >= 1. The paper uses 1000.
        max_norm: clip the norm of s_K to this (iDEM clips at 20 to 70; DQS does not). None: no clipping.
    """

    @checked
    def __init__(self, num_samples: int = 32, max_norm: Positive | None = None) -> None:
        super().__init__(num_samples)
        self.max_norm = max_norm

    def denoised(self, posterior: Posterior, points: Tensor, pulled_back: Tensor, weight: Tensor) -> Tensor:
        target = (weight * pulled_back).sum(0)
        if self.max_norm is not None:
            norm = target.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(target.dtype).tiny)
            target = target * (self.max_norm / norm).clamp_max(1)
        return posterior.x + posterior.sigma**2 * target


class ControlVariate(_Pathwise):
    """The denoising and the target-score identities, combined in each dimension for the least variance.

    D = (1 - eta) sum_k w_k a_k + eta (x + sigma^2 s_K), both from the same K proposals: the mean is the same for every
    eta (Stein's identity), and eta in [0, 1] minimises the variance of a self-normalised mean, estimated from the same
    weights. Far better than either at small sigma, like importance weights at large. (Reverse flow matching, arXiv
    2601.08136.)
    """

    def denoised(self, posterior: Posterior, points: Tensor, pulled_back: Tensor, weight: Tensor) -> Tensor:
        x, sigma = posterior.x, posterior.sigma
        by_weights = (weight * points).sum(0)
        by_score = x + sigma**2 * (weight * pulled_back).sum(0)
        # The variance of sum_k w_k f_k is sum_k w_k^2 (f_k - mean)^2 to first order.
        first = points - by_weights
        change = (x + sigma**2 * pulled_back - by_score) - first
        square = (weight.square() * change.square()).sum(0).clamp_min(torch.finfo(x.dtype).tiny)
        eta = (-(weight.square() * first * change).sum(0) / square).clamp(0, 1)
        return torch.lerp(by_weights, by_score, eta)


class NoiseSplit(EnergyEstimator):
    """One estimator below a noise level and another above it.

    Args:
        below: used where sigma < at.
        above: used where sigma >= at.
        at: the noise level between them; > 0.
    """

    @checked
    def __init__(self, below: EnergyEstimator, above: EnergyEstimator, at: Positive = 0.1) -> None:
        super().__init__(max(below.num_samples, above.num_samples))
        self.below, self.above, self.at = below, above, at
        self.pools = below.pools or above.pools

    def cost(self, points: int = 1) -> int:
        # Both are evaluated at every point, so that no shape depends on sigma.
        return self.below.cost(points) + self.above.cost(points)

    def estimate(self, posterior: Posterior) -> Estimate:
        low, high = (estimator.estimate(posterior) for estimator in (self.below, self.above))
        is_low = (posterior.sigma < self.at).expand(*posterior.x.shape[:-1], 1)
        masks = is_low, is_low, is_low.squeeze(-1)
        return Estimate(*(torch.where(mask, a, b) for mask, a, b in zip(masks, low, high, strict=True)))
