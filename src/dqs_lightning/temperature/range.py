"""Temperatures beside the present one, at which a policy learns and can be sampled."""

import math

import torch
from torch import Tensor

from dqs_lightning.ranges import Positive, checked


class TemperatureRange:
    """The temperatures from low T to high T, for the present T.

    Args:
        low: factor of T; in (0, 1].
        high: factor of T; >= 1.
    """

    @checked
    def __init__(self, low: Positive = 1.0, high: Positive = 1.0) -> None:
        if not low <= 1 <= high:
            raise ValueError(f"temperature_range=[{low:g}, {high:g}]: must be low <= 1 <= high")
        self.low, self.high = low, high

    def draw(self, temperature: Tensor, like: Tensor) -> Tensor:
        """Draws a temperature for each row of a tensor [B, n], log-uniformly: [B]; the scalar T where low is high."""
        if self.low == self.high:
            return temperature
        uniform = torch.rand(len(like), dtype=like.dtype, device=like.device)
        return temperature * torch.exp(math.log(self.low) + math.log(self.high / self.low) * uniform)

    def check(self, value: float, temperature: float) -> None:
        """Raises a ValueError for a temperature that is not in the range of the present T."""
        low, high = self.low * temperature, self.high * temperature
        if not low * (1 - 1e-6) <= value <= high * (1 + 1e-6):
            raise ValueError(
                f"temperature={value:g}: must be {low:g} to {high:g}, which the policy has learned "
                "(temperature_range, set before training)"
            )
