"""Energy estimators: the denoised mean D(x, sigma) = E[a | x] from an energy alone, without samples.

With x = a + sigma eps and a ~ exp(log_prob), Tweedie gives score(x, sigma) = (D - x) / sigma^2. Every
estimator is written as a Monte-Carlo target for D: that is the quantity a denoiser regresses on, it stays
bounded on a bounded set, and the score follows from it.
"""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from dqs_lightning.diffusion.support import LogProb, Support


class Estimate(NamedTuple):
    """Attributes: `denoised` [B, d], the estimate of E[a | x]; `ess` [B] in [1, K], the effective sample size."""

    denoised: Tensor
    ess: Tensor


def score(denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """Tweedie: grad_x log p_sigma(x) = (D - x) / sigma^2, shape of x."""
    return (denoised - x) / sigma**2


def softmax_weights(log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Self-normalised weights [K, B] over the first axis, in float32 or better, and their ESS [B]."""
    if log_weight.dtype in (torch.float16, torch.bfloat16):
        log_weight = log_weight.float()
    weight = torch.softmax(log_weight, 0)
    return weight, 1 / weight.square().sum(0)


class EnergyEstimator(ABC):
    """Estimates the denoised mean of exp(log_prob) from K evaluations of log_prob a point.

    Subclass it and write `__call__`; the subclass can then be named in a config. Laws: nothing changes when
    a constant is added to log_prob; the estimate is finite for K = 1 and at every sigma; it converges to
    quadrature as K grows.

    Args:
        num_samples: K, evaluations of log_prob for each noised point; >= 1.

    Raises:
        ValueError: when num_samples < 1.
    """

    def __init__(self, num_samples: int = 32) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples}: allowed is 1 or more")
        self.num_samples = int(num_samples)

    @abstractmethod
    def __call__(
        self,
        log_prob: LogProb,
        x: Tensor,
        sigma: Tensor,
        support: Support,
        generator: torch.Generator | None = None,
        guide: Tensor | None = None,
    ) -> Estimate:
        """Estimate E[a | x].

        Args:
            log_prob: unnormalised log density of the ACTION, [..., B, d] -> [..., B].
            x: noised latents, [B, d].
            sigma: their noise levels, [B, 1] or a scalar tensor; > 0.
            support: the action set and its latent.
            generator: source of randomness; torch's global one when None.
            guide: what a denoiser holds E[a | x] to be at present, [B, d]; None where there is none. It may decide
                where an estimator looks, never what it converges to.
        """


class Importance(EnergyEstimator):
    """D = sum_k w_k a_k with a_k ~ N(x, sigma^2) within the support and w = softmax(log_prob(a_k)).

    Self-normalised importance sampling of the posterior p(a | x), which is exp(log_prob(a)) N(x; a, sigma^2).
    No gradient of the energy is needed; truncated proposals make it exact at the walls of a box; antithetic
    pairs lower its variance. (MaxEntDP, arXiv 2502.11612; truncation and pairs.)
    """

    @torch.no_grad()
    def __call__(
        self,
        log_prob: LogProb,
        x: Tensor,
        sigma: Tensor,
        support: Support,
        generator: torch.Generator | None = None,
        guide: Tensor | None = None,
    ) -> Estimate:
        points = support.propose(x, sigma, self.num_samples, generator).points
        weight, ess = softmax_weights(support.log_prob(log_prob, points))
        return Estimate((weight.to(x.dtype).unsqueeze(-1) * points).sum(0), ess)


class TargetScore(EnergyEstimator):
    """D = x + sigma^2 s_K, s_K = grad_x log (1/K) sum_k exp(log_prob(a_k)), a_k = x + sigma eps_k: the paper.

    This is iDEM's estimator (arXiv 2402.06121, equation 8; arXiv 2410.01312): s_K = sum_k w_k grad log_prob(a_k).
    On a box the same gradient is taken through proposals truncated at the walls, which adds da_k/dx and the
    gradient of the log mass inside; without walls both vanish and the formula is the paper's. Best where sigma
    is far below the width of a mode; its variance grows without bound above it.

    Args:
        num_samples: K; >= 1. The paper uses 1000.
        max_norm: clip the norm of s_K to this (iDEM clips at 20 to 70; DQS does not). None: no clipping.
    """

    def __init__(self, num_samples: int = 32, max_norm: float | None = None) -> None:
        super().__init__(num_samples)
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"max_norm={max_norm}: allowed is a number > 0, or null for no clipping")
        self.max_norm = max_norm

    def __call__(
        self,
        log_prob: LogProb,
        x: Tensor,
        sigma: Tensor,
        support: Support,
        generator: torch.Generator | None = None,
        guide: Tensor | None = None,
    ) -> Estimate:
        proposals = support.propose(x.detach(), sigma, self.num_samples, generator)
        with torch.enable_grad():
            points = proposals.points.requires_grad_()
            log_weight = support.log_prob(log_prob, points)
            (gradient,) = torch.autograd.grad(log_weight.sum(), points)
        weight, ess = softmax_weights(log_weight.detach())
        pulled_back = weight.to(x.dtype).unsqueeze(-1) * gradient * proposals.dpoint_dx
        target = pulled_back.sum(0) + proposals.dlog_mass_dx
        if self.max_norm is not None:
            norm = target.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
            target = target * (self.max_norm / norm).clamp_max(1)
        return Estimate(x + sigma**2 * target, ess)


class GuidedDefensive(EnergyEstimator):
    """Importance sampling in which half of the proposals stay around x and half are sent where mass is expected.

    The second half is drawn around m = guide + one clipped step along sigma_q^2 grad log_prob, with the width
    sigma_q = sigma sigma_data / sqrt(sigma^2 + sigma_data^2) that a posterior has. Each proposal is weighed by the
    exact density of the mixture, w_k ~ exp(log_prob(a_k)) N(a_k; x, sigma^2) / q(a_k): a wrong guide costs variance,
    never bias, and the first half keeps every mode in reach. Sharp in six dimensions and more, where proposals
    around x alone find one good action in K at best.

    Args:
        num_samples: K; >= 1. With K = 1 the proposal is around x.
        sigma_data: standard deviation of clean actions; > 0.
        clip: longest step from the guide in each dimension, in units of sigma_q; > 0.
    """

    def __init__(self, num_samples: int = 32, sigma_data: float = 0.5, clip: float = 1.5) -> None:
        super().__init__(num_samples)
        for name, value in (("sigma_data", sigma_data), ("clip", clip)):
            if not value > 0:
                raise ValueError(f"{name}={value}: allowed is a number > 0")
        self.sigma_data, self.clip = float(sigma_data), float(clip)

    @torch.no_grad()
    def __call__(
        self,
        log_prob: LogProb,
        x: Tensor,
        sigma: Tensor,
        support: Support,
        generator: torch.Generator | None = None,
        guide: Tensor | None = None,
    ) -> Estimate:
        width = sigma * self.sigma_data / torch.sqrt(sigma**2 + self.sigma_data**2)
        with torch.enable_grad():
            start = support.project(x if guide is None else guide).detach().requires_grad_()
            (gradient,) = torch.autograd.grad(support.log_prob(log_prob, start).sum(), start)
        reach = self.clip * width
        step = torch.maximum(torch.minimum(width**2 * gradient, reach), -reach)
        center = support.project(start.detach() + step)

        around_x = (self.num_samples + 1) // 2
        guided = self.num_samples - around_x
        points = support.propose(x, sigma, around_x, generator).points
        if guided:
            points = torch.cat([points, support.propose(center, width, guided, generator).points])
        log_q = torch.stack(
            [
                support.proposal_log_prob(points, x, sigma) + math.log(around_x / self.num_samples),
                support.proposal_log_prob(points, center, width) + math.log(max(guided, 1e-30) / self.num_samples),
            ]
        ).logsumexp(0)
        log_posterior = support.log_prob(log_prob, points) - (points - x).div(sigma).square().sum(-1) / 2
        weight, ess = softmax_weights(log_posterior - log_q)
        return Estimate((weight.to(x.dtype).unsqueeze(-1) * points).sum(0), ess)
