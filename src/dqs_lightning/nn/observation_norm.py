"""Normalisation of observations by their running moments."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class ObservationNorm(nn.Module):
    """Normalises observations, (s - mean) / standard deviation, over all batches so far, each of equal weight.

    Args:
        dim: dimension o of the observation.
    """

    EPSILON = 1e-4
    """Added to the variance, so that components which were constant are not amplified when they change."""

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, observation: Tensor) -> Tensor:
        """[..., o] -> [..., o]."""
        return (observation - self.mean) * torch.rsqrt(self.variance + self.EPSILON)

    @torch.no_grad()
    def update(self, observation: Tensor, over_ranks: Callable[[Tensor], Tensor] = lambda moments: moments) -> None:
        """Updates mean and variance with a batch [B, o]; `over_ranks` averages a tensor over ranks."""
        shifted = observation - self.mean
        first, second = over_ranks(torch.stack([shifted.mean(0), shifted.square().mean(0)]))
        self.batches += 1
        weight = 1 / self.batches
        self.mean += weight * first
        self.variance.lerp_(second, weight).sub_((weight * first).square())
