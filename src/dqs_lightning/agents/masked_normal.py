"""The tanh of a normal distribution of which some dimensions do not exist in some rows."""

from typing import Any

import torch
from torch import Tensor
from torchrl.modules import TanhNormal


class MaskedTanhNormal(TanhNormal):  # type: ignore[misc]  # torchrl has no types
    """`TanhNormal` of the dimensions that exist: samples are 0 in the others, and the density does not include these.

    Args:
        loc: mean of the normal distribution, [..., d].
        scale: its standard deviation, [..., d].
        mask: which dimensions exist, [..., d], boolean.
    """

    def __init__(self, loc: Tensor, scale: Tensor, mask: Tensor) -> None:
        self.mask = mask
        super().__init__(loc, scale, event_dims=0)

    def _existing(self, values: Tensor) -> Tensor:
        return torch.where(self.mask, values, 0.0)

    def rsample(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._existing(super().rsample(*args, **kwargs))

    def sample(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._existing(super().sample(*args, **kwargs))

    def log_prob(self, value: Tensor, **kwargs: Any) -> Tensor:
        return self._existing(super().log_prob(value, **kwargs)).sum(-1)

    def rsample_and_log_prob(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        sample, log_prob = super().rsample_and_log_prob(*args, **kwargs)
        return self._existing(sample), self._existing(log_prob).sum(-1)

    def sample_and_log_prob(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        sample, log_prob = super().sample_and_log_prob(*args, **kwargs)
        return self._existing(sample), self._existing(log_prob).sum(-1)

    @property
    def deterministic_sample(self) -> Tensor:
        return self._existing(super().deterministic_sample)
