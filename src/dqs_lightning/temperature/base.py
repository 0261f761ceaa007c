"""What a temperature is, and what it may measure."""

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor, nn


class Measurements(Protocol):
    """What a temperature may ask of the agent after an update. Each is computed only when asked.

    All are scalar tensors on the agent's device, averaged over ranks already.
    """

    def q_spread(self) -> Tensor:
        """Standard deviation of Q over uniform actions, mean over states; in units of Q, >= 0."""

    def entropy(self) -> Tensor:
        """Entropy of the policy in nats per action dimension, mean over states; at most log 2 on [-1, 1]."""

    def ess(self) -> Tensor:
        """Effective sample size of the energy estimator's weights as a share of its candidates, in (0, 1]."""


class Temperature(nn.Module, ABC):
    """T as a function of what has been seen so far. Its state is in buffers, so that a checkpoint continues it.

    Subclass it and write `forward`; the subclass can then be named in a config. No method waits for the device: no
    value is read on the host.
    """

    updates: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @abstractmethod
    def forward(self) -> Tensor:
        """The present T > 0, a scalar tensor on the module's device."""

    def step(self, measured: Measurements | None = None) -> None:
        """Called once after each gradient update.

        Args:
            measured: what can be asked of the agent; None: nothing, and a measured quantity stays as it was.
        """
        self.updates += 1

    def metrics(self) -> dict[str, Tensor]:
        """Scalar tensors to log, finite from the start."""
        return {"temperature": self()}


class ExponentialMovingAverage(nn.Module):
    """Exponential mean of scalars, bias-corrected as Adam's moments are; `default` before the first.

    A value that is not finite is left out: it would stay in the mean for ever.
    """

    total: Tensor
    weight: Tensor

    def __init__(self, decay: float, default: float) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: allowed is 0 <= decay < 1")
        self.decay, self.default = float(decay), float(default)
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))

    @torch.no_grad()
    def add(self, value: Tensor) -> None:
        value = value.to(self.total.dtype)
        finite = torch.isfinite(value)
        keep = torch.where(finite, self.decay, 1.0)
        self.total.copy_(keep * self.total + (1 - keep) * torch.where(finite, value, 0.0))
        self.weight.copy_(keep * self.weight + (1 - keep))

    def forward(self) -> Tensor:
        tiny = torch.finfo(self.weight.dtype).tiny
        return torch.where(self.weight > 0, self.total / self.weight.clamp_min(tiny), self.default)
