"""The score network, written as a denoiser: the moments of p(a | x, condition) at noise sigma, and its loss."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dqs_lightning.diffusion.estimators import Estimate
from dqs_lightning.diffusion.samplers import Denoise, Moments
from dqs_lightning.nn.backbones import Apply, Backbone, Layers, apply
from dqs_lightning.ranges import Positive, checked

VARIANCE_WEIGHT = 0.1
"""Weight of the variance's loss beside the mean's; results change little from 0.1 to 1."""

RATIO_LIMIT = 30.0
"""S_K / V above which its logarithm is used in the loss."""


class Preconditioning(ABC):
    """Turns the raw network F into a denoiser: D = c_skip x + c_out F(c_in x, sigma, condition).

    The variance is V = prior_variance(sigma) exp(G), G the network's second half.
    """

    @abstractmethod
    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(c_skip, c_out, c_in), each of sigma's shape."""

    @abstractmethod
    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Weight of |D - D_target|^2 in the score loss, sigma's shape."""

    @abstractmethod
    def prior_variance(self, sigma: Tensor) -> Tensor:
        """Var[a | x] of a normal a, sigma's shape: the unit of the network's variance."""


class EDM(Preconditioning):
    """EDM's preconditioning (arXiv 2206.00364, table 1): unit-variance input and target at every sigma.

    Args:
        sigma_data: standard deviation of clean actions; > 0. Uniform on [-1, 1] has 0.58.
    """

    @checked
    def __init__(self, sigma_data: Positive = 0.5) -> None:
        self.sigma_data = sigma_data

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        variance = sigma**2 + self.sigma_data**2
        c_in = torch.rsqrt(variance)
        return self.sigma_data**2 / variance, sigma * self.sigma_data * c_in, c_in

    def loss_weight(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2

    def prior_variance(self, sigma: Tensor) -> Tensor:
        return (sigma * self.sigma_data) ** 2 / (sigma**2 + self.sigma_data**2)


class RawScore(Preconditioning):
    """The network is the score itself, as in the paper: D = x + sigma^2 F(x, sigma, condition).

    The paper's loss, (sigma^2 + 1e-3) |F - s_K|^2, is (sigma^2 + 1e-3) / sigma^4 |D - D_K|^2.
    """

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one = torch.ones_like(sigma)
        return one, sigma**2, one

    def loss_weight(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + 1e-3) / sigma**4

    def prior_variance(self, sigma: Tensor) -> Tensor:
        return sigma**2 / (sigma**2 + 1)


class Denoiser(Layers):
    """Estimate of the moments of p(a | x, condition), with SiLU and a sinusoidal embedding of log sigma.

    Args:
        dim: dimension d of x.
        condition_dim: dimension c of the condition; 0 for none.
        backbone: the hidden layers; None: `MLP`.
        embedding: width of the noise embedding; even.
        preconditioning: how the network's output becomes D.
    """

    frequencies: Tensor

    def __init__(
        self,
        dim: int,
        condition_dim: int = 0,
        backbone: Backbone | None = None,
        embedding: int = 64,
        preconditioning: Preconditioning | None = None,
    ) -> None:
        if not embedding >= 2 or embedding % 2:
            raise ValueError(f"embedding={embedding}: must be an even number >= 2")
        super().__init__(dim + embedding + condition_dim, 2 * dim, backbone)
        self.dim, self.condition_dim, self.embedding = dim, condition_dim, embedding
        self.preconditioning = preconditioning or EDM()
        # A zero last layer starts every sample at the prior's moments, not at a random function of the state.
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        octaves = torch.linspace(0, math.log(32), embedding // 2)
        self.register_buffer("frequencies", torch.exp(octaves), persistent=False)

    def bind(self, condition: Tensor, dtype: torch.dtype | None = None) -> Denoise:
        """Returns the denoiser for conditions [..., c], whose part of the first layer is computed only once.

        For inference, inner layers are multiplied in `dtype`, if it is given.

        Raises:
            ValueError: for conditions of another dimension.
        """
        if condition.shape[-1] != self.condition_dim:
            raise ValueError(f"condition of shape {list(condition.shape)}: must be [..., {self.condition_dim}]")
        weight_x, weight_sigma, weight_condition = self.first.weight.split(
            [self.dim, self.embedding, self.condition_dim], dim=1
        )
        context = F.linear(condition, weight_condition, self.first.bias)
        linear = apply if dtype is None else self._shortened(dtype)

        def denoise(x: Tensor, sigma: Tensor) -> Moments:
            sigma = sigma.reshape(1) if sigma.ndim == 0 else sigma
            c_skip, c_out, c_in = self.preconditioning.coefficients(sigma)
            phase = torch.log(sigma) * self.frequencies / 4
            noise_features = torch.cat([torch.sin(phase), torch.cos(phase)], -1)
            hidden = F.linear(c_in * x, weight_x) + (F.linear(noise_features, weight_sigma) + context)
            hidden = self.backbone(self.rest, hidden, F.silu, linear)
            output, log_ratio = self.last(hidden).chunk(2, -1)
            variance = self.preconditioning.prior_variance(sigma) * torch.exp(log_ratio.clamp(-9, 3))
            return Moments(c_skip * x + c_out * output, variance)

        return denoise

    def _shortened(self, dtype: torch.dtype) -> Apply:
        """Linear layers of the backbone multiplied in `dtype`, their weights rounded once."""
        short = {layer: layer.weight.to(dtype) for layer in self.rest.modules() if isinstance(layer, nn.Linear)}

        def linear(layer: nn.Linear, hidden: Tensor) -> Tensor:
            return F.linear(hidden.to(dtype), short[layer]).to(hidden.dtype) + layer.bias

        return linear

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor) -> Moments:
        """Moments at x [..., d], sigma scalar or [..., 1], condition [..., c]; both [..., d]."""
        return self.bind(condition)(x, sigma)

    def loss(
        self, moments: Moments, estimate: Estimate, sigma: Tensor, mean: Callable[[Tensor], Tensor] = torch.mean
    ) -> Tensor:
        """Score matching, lambda(sigma) |D - D_K|^2, and with it the variance's likelihood, log V + S_K / V.

        S_K is the estimator's second moment around the network's own mean, so that the minimum is at V = Var[a | x]
        once D is exact, and larger before. Where a narrow distribution shifts, S_K / V may exceed 10^3 in one entry,
        after whose gradient Adam's steps are ten times smaller for thousands of updates. So above `RATIO_LIMIT` = L the
        ratio r is replaced by L (1 + log(r / L)), whose slope in log V is at least -L.

        Args:
            moments: of this network at the noised points, which were the estimator's guide.
            estimate: the target at the same points.
            sigma: their noise levels, [..., 1].
            mean: of values [..., d] over points and dimensions.
        """
        weight = self.preconditioning.loss_weight(sigma)
        mean_loss = mean(weight * (moments.mean - estimate.denoised).square())
        ratio = estimate.second_moment / moments.variance
        limited = ratio.clamp_max(RATIO_LIMIT) + RATIO_LIMIT * torch.log(ratio.clamp_min(RATIO_LIMIT) / RATIO_LIMIT)
        return mean_loss + VARIANCE_WEIGHT * mean(torch.log(moments.variance) + limited)
