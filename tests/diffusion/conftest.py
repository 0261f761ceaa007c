"""Exact references for the tests: a mixture on the line, and quadrature for any energy."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from torch import Tensor

from dqs_lightning.diffusion import LogProb, Moments, Support


class Mixture:
    """Mixture of two Gaussians of equal standard deviation on the line, with exact moments and quantiles."""

    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    means = torch.tensor([-0.6, 0.5], dtype=torch.float64)
    std = 0.15

    def log_prob(self, a: Tensor) -> Tensor:
        """[..., B, 1] -> [..., B]."""
        return torch.logsumexp(self.weights.log() - (a - self.means).square() / (2 * self.std**2), -1)

    def denoise(self, x: Tensor, sigma: Tensor) -> Moments:
        """The exact moments of p(a | x), [..., 1]."""
        total = self.std**2 + sigma**2
        share = torch.softmax(self.weights.log() - (x - self.means).square() / (2 * total), -1)
        means = (x * self.std**2 + self.means * sigma**2) / total
        mean = (share * means).sum(-1, keepdim=True)
        return Moments(mean, self.std**2 * sigma**2 / total + (share * (means - mean).square()).sum(-1, keepdim=True))

    def quantiles(self, num: int) -> np.ndarray:
        grid = np.linspace(-2, 2, 20001)
        cdf = sum(
            w * ndtr((grid - m) / self.std) for w, m in zip(self.weights.numpy(), self.means.numpy(), strict=True)
        )
        return np.interp((np.arange(num) + 0.5) / num, cdf, grid)


@pytest.fixture
def mixture() -> Mixture:
    return Mixture()


@pytest.fixture
def wells() -> LogProb:
    """Energy in any dimension with two modes of unequal mass on the diagonal."""

    def log_prob(a: Tensor) -> Tensor:
        left, right = ((a - center).square().sum(-1) / (2 * 0.3**2) for center in (-0.5, 0.5))
        return torch.logaddexp(math.log(0.3) - left, math.log(0.7) - right)

    return log_prob


def midpoints(support: Support, dim: int, cells: int) -> Tensor:
    """Returns the centers of a grid over the latent set, [cells^dim, dim]; an infinite one is truncated at -8 and 8."""
    low, high = support.project(torch.tensor([-8.0, 8.0], dtype=torch.float64)).tolist()
    axis = low + (high - low) * (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    return torch.stack(torch.meshgrid(*[axis] * dim, indexing="ij"), -1).reshape(-1, dim)


@pytest.fixture
def posterior() -> Callable[[LogProb, Tensor, Tensor, Support], Moments]:
    """Computes the moments of p(latent | x) by quadrature: x [..., d], sigma [..., 1] or scalar -> [..., d]."""

    def moments(log_prob: LogProb, x: Tensor, sigma: Tensor, support: Support) -> Moments:
        dim = x.shape[-1]
        grid = midpoints(support, dim, 4000 if dim == 1 else 240)
        prior = support.log_prob(log_prob, grid)
        means, variances = [], []
        for point, noise in zip(x.reshape(-1, dim), sigma.expand(*x.shape[:-1], 1).reshape(-1, 1), strict=True):
            weight = torch.softmax(prior - (point - grid).square().sum(-1) / (2 * noise**2), 0)
            means.append(weight @ grid)
            variances.append(weight @ (grid - means[-1]).square())
        return Moments(torch.stack(means).reshape(x.shape), torch.stack(variances).reshape(x.shape))

    return moments


@pytest.fixture
def wasserstein() -> Callable[[Tensor, np.ndarray], float]:
    """Computes the Wasserstein-1 distance between samples on the line and as many quantiles of a distribution."""

    def distance(samples: Tensor, quantiles: np.ndarray) -> float:
        return float(np.abs(np.sort(samples.flatten().double().numpy()) - quantiles).mean())

    return distance
