"""Temperatures that are set: fixed, annealed, or in units of the spread of Q."""

import torch
from torch import Tensor

from dqs_lightning.ranges import at_least, positive
from dqs_lightning.temperature.base import ExponentialMovingAverage, Measurements, Temperature


def annealed(updates: Tensor, start: float, end: float, over_updates: int) -> Tensor:
    """From `start` to `end` in even steps of the logarithm over `over_updates` updates, then `end`; a scalar."""
    return start * (end / start) ** (updates / over_updates).clamp_max(1)


class Constant(Temperature):
    """One T throughout.

    Args:
        value: T > 0.
    """

    def __init__(self, value: float = 0.01) -> None:
        super().__init__()
        self.value = positive("value", value)

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
        self.start, self.end = positive("start", start), positive("end", end)
        self.over_updates = int(at_least("over_updates", over_updates, 1))

    def forward(self) -> Tensor:
        return annealed(self.updates, self.start, self.end, self.over_updates)


class Relative(Temperature):
    """T = tau x the spread of Q: the policy is as sharp whatever the scale of the rewards.

    The spread is the standard deviation of Q over uniform actions (`Measurements.q_spread`), averaged over states
    and, exponentially, over updates. T follows a growing Q at once; nothing is fed back, so nothing can ring. Where
    Q is flat in all states but few, T is small. With `end` below `tau` the policy explores at first and is sharp at
    last: tau goes to `end` in even steps of its logarithm.

    Args:
        tau: T in units of the spread; > 0.
        end: tau from update `over_updates` on; > 0. None: tau does not change.
        over_updates: gradient updates that the way from tau to `end` takes; >= 1.
        decay: of the running mean, a mean over about 1 / (1 - decay) updates; 0 <= decay < 1.
        initial: T before the first measurement, in units of Q; >= floor.
        floor: T is never below this, in units of Q; > 0. A critic whose Q is constant in the action needs it.

    Raises:
        ValueError: for arguments out of these ranges.
    """

    def __init__(
        self,
        tau: float = 0.1,
        end: float | None = None,
        over_updates: int = 40_000,
        decay: float = 0.99,
        initial: float = 0.05,
        floor: float = 1e-4,
    ) -> None:
        super().__init__()
        self.tau, self.floor = positive("tau", tau), positive("floor", floor)
        self.end = self.tau if end is None else positive("end", end)
        self.over_updates = int(at_least("over_updates", over_updates, 1))
        self.initial = positive("initial", initial)
        if initial < floor:
            raise ValueError(f"initial={initial}: allowed is a number >= floor={floor}")
        self.spread = ExponentialMovingAverage(decay, self.initial / self.tau)
        self.decay = self.spread.decay

    def step(self, measured: Measurements | None = None) -> None:
        super().step(measured)
        if measured is not None:
            self.spread.add(measured.q_spread())

    def forward(self) -> Tensor:
        tau = annealed(self.updates, self.tau, self.end, self.over_updates)
        temperature: Tensor = (tau * self.spread()).clamp_min(self.floor)
        return temperature

    def metrics(self) -> dict[str, Tensor]:
        return {**super().metrics(), "q_spread": self.spread()}
