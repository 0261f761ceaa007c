"""The score network, written as a denoiser D(x, sigma, condition), and its preconditioning."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dqs_lightning.diffusion.samplers import Denoise


class Preconditioning(ABC):
    """How the raw network F becomes a denoiser: D = c_skip x + c_out F(c_in x, sigma, condition)."""

    @abstractmethod
    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(c_skip, c_out, c_in), each of sigma's shape."""

    @abstractmethod
    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Weight of |D - D_target|^2 in the score loss, sigma's shape."""


class EDM(Preconditioning):
    """EDM's preconditioning (arXiv 2206.00364, table 1): unit-variance input and target at every sigma.

    Args:
        sigma_data: standard deviation of clean actions; > 0. Uniform on [-1, 1] has 0.58.
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        if not sigma_data > 0:
            raise ValueError(f"sigma_data={sigma_data}: allowed is a number > 0")
        self.sigma_data = float(sigma_data)

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        variance = sigma**2 + self.sigma_data**2
        c_in = torch.rsqrt(variance)
        return self.sigma_data**2 / variance, sigma * self.sigma_data * c_in, c_in

    def loss_weight(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


class RawScore(Preconditioning):
    """The network is the score itself, as in the paper: D = x + sigma^2 F(x, sigma, condition).

    The paper's loss, (sigma^2 + 1e-3) |F - s_K|^2, is (sigma^2 + 1e-3) / sigma^4 |D - D_K|^2.
    """

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one = torch.ones_like(sigma)
        return one, sigma**2, one

    def loss_weight(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + 1e-3) / sigma**4


class Denoiser(nn.Module):
    """MLP estimate of E[a | x, condition] at noise sigma, with SiLU and a sinusoidal embedding of log sigma.

    Args:
        dim: dimension d of x.
        condition_dim: dimension c of the condition; 0 for none.
        hidden: widths of the hidden layers, at least one.
        embedding: width of the noise embedding; even.
        preconditioning: how the network's output becomes D.
    """

    frequencies: Tensor

    def __init__(
        self,
        dim: int,
        condition_dim: int = 0,
        hidden: Sequence[int] = (256, 256),
        embedding: int = 64,
        preconditioning: Preconditioning | None = None,
    ) -> None:
        super().__init__()
        if embedding < 2 or embedding % 2:
            raise ValueError(f"embedding={embedding}: allowed is an even number, 2 or more")
        self.dim, self.condition_dim, self.embedding = dim, condition_dim, embedding
        self.preconditioning = preconditioning or EDM()
        self.first = nn.Linear(dim + embedding + condition_dim, hidden[0])
        last = nn.Linear(hidden[-1], dim)
        # A zero last layer starts every sample at the prior mean, not at a random function of the state.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.rest = nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.SiLU()) for a, b in pairwise(hidden)), last)
        octaves = torch.linspace(0, math.log(32), embedding // 2)
        self.register_buffer("frequencies", torch.exp(octaves), persistent=False)

    def given(self, condition: Tensor | None) -> Denoise:
        """Bind a condition [..., c]: its share of the first layer is computed once, however often D is called.

        Raises:
            ValueError: when the network has a condition and none is given.
        """
        if condition is None and self.condition_dim:
            raise ValueError(f"condition=None: this denoiser wants conditions of dimension {self.condition_dim}")
        weight_x, weight_sigma, weight_condition = self.first.weight.split(
            [self.dim, self.embedding, self.condition_dim], dim=1
        )
        context = self.first.bias if condition is None else F.linear(condition, weight_condition, self.first.bias)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            sigma = sigma.reshape(1) if sigma.ndim == 0 else sigma
            c_skip, c_out, c_in = self.preconditioning.coefficients(sigma)
            phase = torch.log(sigma) * self.frequencies / 4
            noise_features = torch.cat([torch.sin(phase), torch.cos(phase)], -1)
            hidden = F.linear(c_in * x, weight_x) + (F.linear(noise_features, weight_sigma) + context)
            output: Tensor = self.rest(F.silu(hidden))
            return c_skip * x + c_out * output

        return denoise

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """D(x, sigma, condition): x [..., d], sigma scalar or [..., 1], condition [..., c] -> [..., d]."""
        return self.given(condition)(x, sigma)
