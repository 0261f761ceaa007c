"""Normalisation of observations by their running moments."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class ObservationNorm(nn.Module):
    """(s - mean) / deviation over all batches that it was shown, each of equal weight; at first it changes nothing.

    Args:
        dim: dimension o of the observation.
    """

    EPSILON = 1e-4
    """Added to the variance: what never moves is not blown up when it does."""

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
        """Take in a batch [B, o]; `over_ranks` is the mean of a tensor over ranks, so that all see alike."""
        moved = observation - self.mean
        first, second = over_ranks(torch.stack([moved.mean(0), moved.square().mean(0)]))
        self.batches += 1
        weight = 1 / self.batches
        self.mean += weight * first
        self.variance.lerp_(second, weight).sub_((weight * first).square())
