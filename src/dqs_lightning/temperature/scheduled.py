"""Temperatures without feedback: constant, annealed, or relative to the standard deviation of Q."""

import torch
from torch import Tensor

from dqs_lightning.ranges import Count, HalfOpenShare, Positive, checked
from dqs_lightning.temperature.base import ExponentialMovingAverage, Measurements, Temperature


def annealed(updates: Tensor, start: float, end: float, over_updates: int) -> Tensor:
    """Goes from `start` to `end` in even steps of the logarithm over `over_updates` updates, then stays; a scalar."""
    return start * (end / start) ** (updates / over_updates).clamp_max(1)


class Constant(Temperature):
    """Constant T.

    Args:
        value: T > 0.
    """

    @checked
    def __init__(self, value: Positive = 0.01) -> None:
        super().__init__()
        self.value = value

    def forward(self) -> Tensor:
        return torch.full((), self.value, device=self.updates.device)


class LogLinear(Temperature):
    """T from `start` to `end` in even steps of log T over `over_updates` updates, then `end`: the paper's annealing.

    Args:
        start: T at the first update; > 0.
        end: T at the last; > 0.
        over_updates: gradient updates of the annealing; >= 1.
    """

    @checked
    def __init__(self, start: Positive = 0.1, end: Positive = 0.01, over_updates: Count = 50_000) -> None:
        super().__init__()
        self.start, self.end, self.over_updates = start, end, over_updates

    def forward(self) -> Tensor:
        return annealed(self.updates, self.start, self.end, self.over_updates)


class Relative(Temperature):
    """T = tau x the standard deviation of Q over uniform actions: the policy does not depend on the reward scale.

    The standard deviation (`Measurements.q_std`) is averaged over states and, exponentially, over updates. T follows a
    growing Q immediately; it is open-loop and cannot oscillate. Where Q is flat in most states, T is small. With `end`
    below `tau` the policy explores first and is nearly greedy at the end: tau goes to `end` in even steps of its
    logarithm.

    Args:
        tau: T in units of the standard deviation; > 0.
        end: tau from update `over_updates` on; > 0. None: tau does not change.
        over_updates: gradient updates from tau to `end`; >= 1.
        decay: of the moving average, over about 1 / (1 - decay) updates; 0 <= decay < 1.
        initial: T before the first measurement, in units of Q; >= floor.
        floor: lower bound of T, in units of Q; > 0. It is needed where Q does not depend on the action.
    """

    @checked
    def __init__(
        self,
        tau: Positive = 0.1,
        end: Positive | None = None,
        over_updates: Count = 40_000,
        decay: HalfOpenShare = 0.99,
        initial: Positive = 0.05,
        floor: Positive = 1e-4,
    ) -> None:
        super().__init__()
        if initial < floor:
            raise ValueError(f"initial={initial}: must be >= floor={floor}")
        self.tau, self.end, self.over_updates = tau, tau if end is None else end, over_updates
        self.decay, self.initial, self.floor = decay, initial, floor
        self.q_std = ExponentialMovingAverage(decay, initial / tau)

    def step(self, measured: Measurements | None = None, updates: int = 1) -> None:
        super().step(measured, updates)
        if measured is not None:
            self.q_std.add(measured.q_std(), updates)

    def forward(self) -> Tensor:
        tau = annealed(self.updates, self.tau, self.end, self.over_updates)
        temperature: Tensor = (tau * self.q_std()).clamp_min(self.floor)
        return temperature

    def metrics(self) -> dict[str, Tensor]:
        return {**super().metrics(), "q_std": self.q_std()}
