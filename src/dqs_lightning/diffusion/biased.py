"""Biased estimators from one gradient: cheap and without variance, but not E[a | x] and without the modes' masses."""

import torch
from torch import Tensor

from dqs_lightning.diffusion.estimators import GRADIENT_COST, EnergyEstimator, Estimate, Posterior, gradient_of
from dqs_lightning.ranges import Positive, checked


class _OneGradient(EnergyEstimator):
    """Base class of estimators from one gradient a point. The second moment is that of D around the guide alone."""

    def cost(self, points: int = 1) -> int:
        return points * GRADIENT_COST

    def _estimate(self, denoised: Tensor, guide: Tensor | None) -> Estimate:
        around = denoised if guide is None else guide
        return Estimate(denoised, (denoised - around).square(), denoised.new_ones(denoised.shape[:-1]))


class QScore(_OneGradient):
    """D = x + sigma^2 grad log_prob(x): the score of the clean distribution at the noised point.

    One gradient and no variance, but biased at every sigma > 0: it does not converge to E[a | x], and modes lose their
    masses. On a box x and D are projected. (QSM, arXiv 2312.11752.)

    Args:
        num_samples: has no effect.
    """

    def estimate(self, posterior: Posterior) -> Estimate:
        log_prob, x, sigma, support, _, guide = posterior
        _, gradient = gradient_of(log_prob, support.project(x), support)
        return self._estimate(support.project(x + sigma**2 * gradient), guide)


class PosteriorMode(_OneGradient):
    """D = the mode of p(a | x), by one gradient step at the guide: x + sigma^2 grad log_prob(guide), kept near it.

    The fixed point is where log_prob(a) - |x - a|^2 / 2 sigma^2 is stationary. The cheapest target; it is biased, since
    a mode is not the mean, and of several modes it stays at the present one. On a box D is projected.

    Args:
        num_samples: has no effect.
        sigma_data: standard deviation of clean actions; > 0.
        clip: longest step from the guide in each dimension, in units of the posterior's standard deviation
            sigma sigma_data / sqrt(sigma^2 + sigma_data^2); > 0.
    """

    @checked
    def __init__(self, num_samples: int = 1, sigma_data: Positive = 0.5, clip: Positive = 1.5) -> None:
        super().__init__(num_samples)
        self.sigma_data, self.clip = sigma_data, clip

    def estimate(self, posterior: Posterior) -> Estimate:
        log_prob, x, sigma, support, _, guide = posterior
        start = support.project(x if guide is None else guide)
        _, gradient = gradient_of(log_prob, start, support)
        reach = self.clip * sigma * self.sigma_data / torch.sqrt(sigma**2 + self.sigma_data**2)
        step = torch.maximum(torch.minimum(x + sigma**2 * gradient - start, reach), -reach)
        return self._estimate(support.project(start + step), guide)
