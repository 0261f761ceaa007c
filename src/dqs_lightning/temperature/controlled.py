"""Temperatures that are found: T is moved until what is measured is at a target."""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from dqs_lightning.ranges import at_least, not_negative, positive
from dqs_lightning.temperature.base import ExponentialMovingAverage, Measurements, Temperature

MAX_ERROR = 1.0
"""A controller's error is clipped to this many nats (of entropy, or of log ESS) at either side."""


class _Controlled(Temperature):
    """log T += gain x (e - e_before) + rate x e after each update, e = clip(error, -1, 1), T held in [floor, ceiling].

    A proportional-integral controller in its velocity form: the state is log T itself, held in its range, so that time
    spent at a wall is not wound up. The error is that of a running mean of the measurement, whose default before the
    first measurement is the target: no error, no move. The first move, after the warm-up, takes e_before as 0.
    """

    log_temperature: Tensor

    def __init__(
        self,
        target: float,
        rate: float,
        gain: float,
        initial: float,
        floor: float,
        ceiling: float,
        warmup: int,
        decay: float,
    ) -> None:
        super().__init__()
        self.target, self.rate = float(target), positive("rate", rate)
        not_negative("gain", gain)
        self.gain = float(gain)
        self.initial, self.floor = positive("initial", initial), positive("floor", floor)
        self.ceiling = positive("ceiling", ceiling)
        if not floor <= initial <= ceiling:
            raise ValueError(f"initial={initial}: allowed is floor={floor} to ceiling={ceiling}")
        at_least("warmup", warmup, 0)
        self.warmup = int(warmup)
        self.smoothed = ExponentialMovingAverage(decay, self.target)
        self.decay = self.smoothed.decay
        self.register_buffer("log_temperature", torch.tensor(math.log(self.initial)))

    @abstractmethod
    def measure(self, measured: Measurements) -> Tensor:
        """What is held at the target, a scalar."""

    @abstractmethod
    def error(self) -> Tensor:
        """Nats by which the target is above the smoothed measurement, a scalar; T has to rise where it is > 0."""

    @torch.no_grad()
    def step(self, measured: Measurements | None = None) -> None:
        before = torch.where(self.updates > self.warmup, self._clipped_error(), 0.0)
        super().step(measured)
        if measured is None:
            return
        self.smoothed.add(self.measure(measured))  # in the warm-up too: the first move is by a mean of many
        error = self._clipped_error()
        move = self.gain * (error - before) + self.rate * error
        moved = self.log_temperature + torch.where(self.updates > self.warmup, move, 0.0)
        self.log_temperature.copy_(moved.clamp(math.log(self.floor), math.log(self.ceiling)))

    def _clipped_error(self) -> Tensor:
        return self.error().clamp(-MAX_ERROR, MAX_ERROR)

    def forward(self) -> Tensor:
        return self.log_temperature.exp().clamp(self.floor, self.ceiling)


class TargetEntropy(_Controlled):
    """Holds the policy's entropy at a target: log T = gain x e + sum of rate x e, e = clip(target - entropy, -1, 1).

    The sum is the dual variable of max E[Q] subject to H(pi) >= target (SAC, arXiv 1812.05905, equation 18), with log T
    as the variable and its error clipped. The policy is a network that follows T with a lag, of hundreds to thousands
    of updates, and a sum alone rings when it is faster than what it controls: near the target the entropy of a
    Boltzmann policy rises by g = 1/2 nat per dimension and nat of T (a smooth maximum) to 1 (a corner), and behind a
    first-order lag of L updates the loop's damping is (1 + gain g) / (2 sqrt(L g rate)). It does not ring where that is
    1 or more: with the defaults up to L = 1000, with the same rate and no gain up to 125. And the gain answers at once:
    where the entropy is a nat too high, T is divided by e^gain before the sum has moved. With `end` below `target` the
    policy explores at first and is sharp at last: what is held falls in even steps.

    Args:
        target: entropy in nats per action dimension; < log 2, that of the uniform law on [-1, 1].
        end: the target from update `over_updates` on; < log 2. None: it does not change.
        over_updates: gradient updates that the way from `target` to `end` takes; >= 1.
        rate: of the sum, for each update; > 0.
        gain: nats of T for a nat of entropy that is missing now; >= 0. 0 is SAC's controller.
        initial: T until the warm-up is over, in units of Q; within [floor, ceiling].
        floor: least T, > 0.
        ceiling: greatest T. Without one a target that no policy reaches lets T grow for ever.
        warmup: updates before T moves; >= 0. Before Q says anything the policy's entropy says nothing of T.
        decay: of the running mean of the entropy, which is a noisy estimate; 0 <= decay < 1.

    Raises:
        ValueError: for arguments out of these ranges.
    """

    def __init__(
        self,
        target: float = -1.0,
        end: float | None = None,
        over_updates: int = 40_000,
        rate: float = 2e-3,
        gain: float = 2.0,
        initial: float = 0.05,
        floor: float = 1e-4,
        ceiling: float = 10.0,
        warmup: int = 5_000,
        decay: float = 0.99,
    ) -> None:
        self.end = float(target if end is None else end)
        for name, value in (("target", target), ("end", self.end)):
            if not -math.inf < value < math.log(2):
                raise ValueError(f"{name}={value}: allowed is a finite number < log 2, the uniform law's entropy")
        self.over_updates = int(at_least("over_updates", over_updates, 1))
        super().__init__(target, rate, gain, initial, floor, ceiling, warmup, decay)

    def measure(self, measured: Measurements) -> Tensor:
        return measured.entropy()

    def present_target(self) -> Tensor:
        """What is held now, a scalar."""
        return self.target + (self.end - self.target) * (self.updates / self.over_updates).clamp_max(1)

    def error(self) -> Tensor:
        below: Tensor = self.present_target() - self.smoothed()
        return below

    def metrics(self) -> dict[str, Tensor]:
        return {**super().metrics(), "entropy": self.smoothed(), "target_entropy": self.present_target()}


class TargetESS(_Controlled):
    """Holds the ESS share of the estimator's weights at a target: log T += rate x clip(log target - log share, -1, 1).

    A larger T flattens the weights. T is then as low as the estimator's candidates can resolve, and no lower: this is
    about the quality of the denoiser's target, not about how much the policy explores. The share rises with T at
    once and by up to d / 2 nats per nat of T in d dimensions; the only lag is that of the running mean, 1 / (1 - decay)
    updates, and the loop does not ring while rate d / 2 <= (1 - decay) / 4: with the defaults, to 25 dimensions.

    Args:
        target: ESS as a share of the candidates; in (0, 1).
        rate: greatest step of log T at one update; > 0.
        initial: T until the warm-up is over, in units of Q; within [floor, ceiling].
        floor: least T, > 0.
        ceiling: greatest T.
        warmup: updates before T moves; >= 0.
        decay: of the running mean of the share; 0 <= decay < 1.

    Raises:
        ValueError: for arguments out of these ranges.
    """

    def __init__(
        self,
        target: float = 0.25,
        rate: float = 2e-4,
        initial: float = 0.05,
        floor: float = 1e-4,
        ceiling: float = 10.0,
        warmup: int = 5_000,
        decay: float = 0.99,
    ) -> None:
        if not 0 < target < 1:
            raise ValueError(f"target={target}: allowed is 0 < target < 1")
        super().__init__(target, rate, 0.0, initial, floor, ceiling, warmup, decay)

    def measure(self, measured: Measurements) -> Tensor:
        return measured.ess()

    def error(self) -> Tensor:
        share = self.smoothed().clamp_min(torch.finfo(self.log_temperature.dtype).tiny)
        return math.log(self.target) - torch.log(share)

    def metrics(self) -> dict[str, Tensor]:
        target = torch.full_like(self.log_temperature, self.target)
        return {**super().metrics(), "ess_share": self.smoothed(), "target_ess": target}
