"""Estimators of one gradient and no candidates: cheap, without variance, and not E[a | x]. Modes lose their masses."""

import torch

from dqs_lightning.diffusion.estimators import GRADIENT_COST, EnergyEstimator, Estimate, Posterior, gradient_of
from dqs_lightning.ranges import Positive, checked


class QScore(EnergyEstimator):
    """D = x + sigma^2 grad log_prob(x): the score of the clean law, taken at the noised point (QSM, arXiv 2312.11752).

    One gradient and no variance, but biased at every sigma > 0: it does not converge to E[a | x] and modes lose their
    masses. On a box x and D are projected. The spread it reports is that of D around the guide alone.

    Args:
        num_samples: of no effect, accepted as every estimator does.
    """

    def cost(self, points: int = 1) -> int:
        return points * GRADIENT_COST

    def estimate(self, posterior: Posterior) -> Estimate:
        log_prob, x, sigma, support, _, guide = posterior
        _, gradient = gradient_of(log_prob, support.project(x), support)
        denoised = support.project(x + sigma**2 * gradient)
        around = denoised if guide is None else guide
        return Estimate(denoised, (denoised - around).square(), x.new_ones(x.shape[:-1]))


class PosteriorMode(EnergyEstimator):
    """D = the mode of p(a | x), by one gradient step at the guide: x + sigma^2 grad log_prob(guide), kept near it.

    The fixed point is where log_prob(a) - |x - a|^2 / 2 sigma^2 is stationary. The sharpest target and the cheapest;
    biased, for a mode is no mean, and of several modes it keeps the one that it stands on. On a box D is projected.

    Args:
        num_samples: of no effect, accepted as every estimator does.
        sigma_data: standard deviation of clean actions; > 0.
        clip: longest step from the guide in each dimension, in units of the posterior's deviation
            sigma sigma_data / sqrt(sigma^2 + sigma_data^2); > 0.
    """

    @checked
    def __init__(self, num_samples: int = 1, sigma_data: Positive = 0.5, clip: Positive = 1.5) -> None:
        super().__init__(num_samples)
        self.sigma_data, self.clip = sigma_data, clip

    def cost(self, points: int = 1) -> int:
        return points * GRADIENT_COST

    def estimate(self, posterior: Posterior) -> Estimate:
        log_prob, x, sigma, support, _, guide = posterior
        start = support.project(x if guide is None else guide)
        _, gradient = gradient_of(log_prob, start, support)
        reach = self.clip * sigma * self.sigma_data / torch.sqrt(sigma**2 + self.sigma_data**2)
        step = torch.maximum(torch.minimum(x + sigma**2 * gradient - start, reach), -reach)
        denoised = support.project(start + step)
        around = denoised if guide is None else guide
        return Estimate(denoised, (denoised - around).square(), x.new_ones(x.shape[:-1]))
