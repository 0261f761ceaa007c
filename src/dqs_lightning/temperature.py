"""Temperature schedules: T in pi(a|s) = exp(Q(s, a) / T), in units of Q."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Temperature(nn.Module, ABC):
    """T as a function of the updates done. Its state is a buffer, so that a checkpoint continues it.

    Subclass it and write `forward`; the subclass can then be named in a config.
    """

    updates: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @abstractmethod
    def forward(self) -> Tensor:
        """The present T > 0, a scalar tensor on the module's device."""

    def step(self) -> None:
        """Called once after each gradient update."""
        self.updates += 1


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value}: allowed is a finite number > 0")
    return float(value)


class Constant(Temperature):
    """One T throughout.

    Args:
        value: T > 0.
    """

    def __init__(self, value: float = 0.01) -> None:
        super().__init__()
        self.value = _positive("value", value)

    def forward(self) -> Tensor:
        return torch.full((), self.value, device=self.updates.device)


class LogLinear(Temperature):
    """From `start` to `end` in even steps of log T over `over_updates` updates, then `end`: the paper's annealing.

    Args:
        start: T of the first update, > 0.
        end: T of the last, > 0.
        over_updates: gradient updates that the annealing takes; >= 1.
    """

    def __init__(self, start: float = 0.1, end: float = 0.01, over_updates: int = 50_000) -> None:
        super().__init__()
        self.start, self.end = _positive("start", start), _positive("end", end)
        if over_updates < 1:
            raise ValueError(f"over_updates={over_updates}: allowed is 1 or more")
        self.over_updates = int(over_updates)

    def forward(self) -> Tensor:
        done = (self.updates / self.over_updates).clamp_max(1)
        return self.start * (self.end / self.start) ** done
