"""Importance-sampling estimators: candidates from a mixture of proposals, weighted by its exact density.

p(a | x) is exp(log_prob(a)) N(x; a, sigma^2) up to a constant. Candidates a_k come from components (center, width)
around each noised point; their weights are w_k ~ exp(log_prob(a_k)) N(a_k; x, sigma^2) / q(a_k), q the density of the
whole mixture. A bad component costs variance, never bias, as long as another covers the posterior.

Noised points of one distribution, x [M, B, d], pool their candidates: each uses those of all M, and q is the mixture of
all their components.
"""

from abc import abstractmethod

import torch

from dqs_lightning.diffusion.estimators import EnergyEstimator, Estimate, Posterior, softmax_weights, weighted
from dqs_lightning.diffusion.proposals import Component, Mixture
from dqs_lightning.diffusion.support import log_normal
from dqs_lightning.ranges import Positive, checked


class MixtureImportance(EnergyEstimator):
    """Importance weights over a mixture of proposals. Subclass it and write `components`."""

    pools = True

    @abstractmethod
    def components(self, posterior: Posterior) -> list[Component]:
        """Proposals for points x [M, B, d], sigma [M, B, 1]: num_samples a point. One must cover the posterior."""

    def estimate(self, posterior: Posterior) -> Estimate:
        log_prob, x, sigma, support, generator, guide = posterior
        if x.ndim == 2:  # one point of each distribution
            level = sigma if sigma.ndim == 0 else sigma.unsqueeze(0)
            guide = None if guide is None else guide.unsqueeze(0)
            alone = self.estimate(posterior._replace(x=x.unsqueeze(0), sigma=level, guide=guide))
            return Estimate(*(moment.squeeze(0) for moment in alone))
        sigma = sigma.expand(*x.shape[:-1], 1)
        mixture = Mixture(support, self.components(posterior._replace(sigma=sigma)))
        points = mixture.draw(x[0], generator)  # [N, B, d]: all candidates of a distribution
        log_prior = support.log_prob(log_prob, points)
        each = points.unsqueeze(1)
        log_weight = (log_prior - mixture.log_density(points)).unsqueeze(1) + log_normal(each, x, sigma)  # [N, M, B]
        weight, ess = softmax_weights(log_weight)
        return weighted(weight, ess, each, guide)


class Importance(MixtureImportance):
    """D = sum_k w_k a_k with a_k ~ N(x, sigma^2) within the support and w = softmax(log_prob(a_k)).

    Self-normalised importance sampling of the posterior, without the energy's gradient (MaxEntDP, arXiv 2502.11612),
    from truncated proposals in antithetic pairs.
    """

    def components(self, posterior: Posterior) -> list[Component]:
        return [Component(posterior.x, posterior.sigma, self.num_samples)]


class Defensive(MixtureImportance):
    """Half of the candidates around x with width sigma, half around the guide with the width of a posterior.

    That width is sigma sigma_data / sqrt(sigma^2 + sigma_data^2). Sharper than `Importance` where the posterior is
    narrower than the noise, in more than two dimensions or at an optimum in a corner.

    Args:
        num_samples: K; >= 1. With K = 1 the candidate is around x.
        sigma_data: standard deviation of clean actions; > 0.
    """

    @checked
    def __init__(self, num_samples: int = 32, sigma_data: Positive = 0.5) -> None:
        super().__init__(num_samples)
        self.sigma_data = sigma_data

    def components(self, posterior: Posterior) -> list[Component]:
        x, sigma, support, guide = posterior.x, posterior.sigma, posterior.support, posterior.guide
        width = sigma * self.sigma_data / torch.sqrt(sigma**2 + self.sigma_data**2)
        guided = self.num_samples // 2
        center = support.project(x if guide is None else guide)
        return [Component(x, sigma, self.num_samples - guided), Component(center, width, guided)]


class Resampling(EnergyEstimator):
    """Candidates uniform on the action set, whatever the noise level: SIR, which needs no network.

    An oracle in one and two dimensions. It fails in more, where no uniform draw is near the optimum, and at noise
    levels below the distance between candidates. Needs a support of finite volume: raises ValueError on `Unbounded`.
    """

    pools = True

    def estimate(self, posterior: Posterior) -> Estimate:
        log_prob, x, sigma, support, generator, guide = posterior
        pooled = x.ndim == 3
        rows = x[0] if pooled else x
        actions = support.uniform(self.num_samples * (x.shape[0] if pooled else 1), rows, generator)
        points, log_prior = support.from_action(actions), log_prob(actions).detach()
        if pooled:
            points, log_prior = points.unsqueeze(1), log_prior.unsqueeze(1)
        log_likelihood = -((points - x) / sigma).square().sum(-1) / 2
        weight, ess = softmax_weights(log_prior + log_likelihood)
        return weighted(weight, ess, points, guide)
