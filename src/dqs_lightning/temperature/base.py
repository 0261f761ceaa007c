"""Interfaces of temperatures, and of the measurements that they may use."""

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor, nn

from dqs_lightning.ranges import HalfOpenShare, checked


class Measurements(Protocol):
    """Measurements of the agent after an update. Each is computed only when it is called.

    All are scalar tensors on the agent's device, already averaged over ranks.
    """

    def q_std(self) -> Tensor:
        """Standard deviation of Q over uniform actions, mean over states; in units of Q, >= 0."""

    def entropy(self) -> Tensor:
        """Entropy of the policy in nats per action dimension, mean over states; at most log 2 on [-1, 1]."""

    def ess(self) -> Tensor:
        """Effective sample size of the energy estimator's weights as a share of its candidates, in (0, 1]."""


class Temperature(nn.Module, ABC):
    """Base class of temperatures T. The state is in buffers, so that a checkpoint continues it.

    Subclass it and write `forward`; the subclass can then be named in a configuration. No method may do a
    device-to-host sync.
    """

    updates: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @abstractmethod
    def forward(self) -> Tensor:
        """Returns the present T > 0, a scalar tensor on the module's device."""

    def step(self, measured: Measurements | None = None, updates: int = 1) -> None:
        """Updates the state; called after a gradient update.

        Args:
            measured: measurements of the agent; None: there are none, and a measured quantity stays as it was.
            updates: gradient updates since the last call; >= 1. Rates and decays are those of one update.
        """
        self.updates += updates

    def metrics(self) -> dict[str, Tensor]:
        """Returns scalar tensors to log, which are always finite."""
        return {"temperature": self()}


class ExponentialMovingAverage(nn.Module):
    """Exponential moving average of tensors, bias-corrected like Adam's moments; `default` before the first.

    Elements that are not finite are ignored, since they would stay in the average forever.

    Args:
        decay: weight of the past, in [0, 1): it averages over about 1 / (1 - decay) values.
        default: the average of no values.
        shape: of the tensors; () for scalars.
    """

    total: Tensor
    weight: Tensor

    @checked
    def __init__(self, decay: HalfOpenShare, default: float, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.decay, self.default = decay, float(default)
        self.register_buffer("total", torch.zeros(shape))
        self.register_buffer("weight", torch.zeros(shape))

    @torch.no_grad()
    def add(self, value: Tensor, repeats: int = 1) -> None:
        """Adds a tensor, as if it had been added `repeats` times."""
        value = value.to(self.total.dtype)
        finite = torch.isfinite(value)
        keep = torch.where(finite, self.decay**repeats, 1.0)
        self.total.copy_(keep * self.total + (1 - keep) * torch.where(finite, value, 0.0))
        self.weight.copy_(keep * self.weight + (1 - keep))

    def forward(self) -> Tensor:
        tiny = torch.finfo(self.weight.dtype).tiny
        return torch.where(self.weight > 0, self.total / self.weight.clamp_min(tiny), self.default)
