"""Feedback-controlled temperatures: T is adjusted until a measured quantity reaches its target."""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from dqs_lightning.ranges import Count, CountOrZero, Finite, HalfOpenShare, NonNegative, OpenShare, Positive, checked
from dqs_lightning.temperature.base import ExponentialMovingAverage, Measurements, Temperature

MAX_ERROR = 1.0
"""A controller's error is clipped to this many nats (of entropy, or of log ESS) on either side."""


class _Controlled(Temperature):
    """log T += gain x (e - e_before) + rate x e after each update, e = clip(error, -1, 1), T kept in [floor, ceiling].

    A proportional-integral controller in velocity form: the state is log T itself, kept in its range, so that the
    integral does not wind up at a bound. The error is that of a moving average of the measurement, which before the
    first measurement equals the target, so that T does not change. The first change, after the warm-up, uses
    e_before = 0.
    """

    rate: float
    gain: float = 0.0
    warmup: int
    """Updates before T changes."""
    log_temperature: Tensor

    def __init__(self, target: float, initial: float, floor: float, ceiling: float, decay: float) -> None:
        super().__init__()
        if not floor <= initial <= ceiling:
            raise ValueError(f"initial={initial}: must be between floor={floor} and ceiling={ceiling}")
        self.target, self.decay = target, decay
        self.initial, self.floor, self.ceiling = initial, floor, ceiling
        self.smoothed = ExponentialMovingAverage(decay, target)
        self.register_buffer("log_temperature", torch.tensor(math.log(initial)))

    @abstractmethod
    def measure(self, measured: Measurements) -> Tensor:
        """Returns the quantity that is controlled, a scalar."""

    @abstractmethod
    def error(self) -> Tensor:
        """Returns target minus smoothed measurement in nats, a scalar; T rises where it is > 0."""

    @torch.no_grad()
    def step(self, measured: Measurements | None = None, updates: int = 1) -> None:
        before = torch.where(self.updates > self.warmup, self._clipped_error(), 0.0)
        super().step(measured, updates)
        if measured is None:
            return
        self.smoothed.add(self.measure(measured), updates)  # in the warm-up too: the first change uses a mean of many
        error = self._clipped_error()
        change = self.gain * (error - before) + self.rate * updates * error
        changed = self.log_temperature + torch.where(self.updates > self.warmup, change, 0.0)
        self.log_temperature.copy_(changed.clamp(math.log(self.floor), math.log(self.ceiling)))

    def _clipped_error(self) -> Tensor:
        return self.error().clamp(-MAX_ERROR, MAX_ERROR)

    def forward(self) -> Tensor:
        return self.log_temperature.exp().clamp(self.floor, self.ceiling)


class TargetEntropy(_Controlled):
    """Keeps the policy's entropy at a target: log T = gain x e + sum of rate x e, e = clip(target - entropy, -1, 1).

    The sum is the dual variable of max E[Q] subject to H(pi) >= target (SAC, arXiv 1812.05905, equation 18), with log T
    as the variable and a clipped error. The policy is a network that follows T with a lag of hundreds to thousands of
    updates, and a sum alone oscillates when it is faster than what it controls: near the target the entropy of a
    Boltzmann policy rises by g = 1/2 nat per dimension and nat of T (a smooth maximum) to 1 (a corner), and behind a
    first-order lag of L updates the loop's damping is (1 + gain g) / (2 sqrt(L g rate)). It does not oscillate where
    that is >= 1: with the defaults up to L = 1000, with the same rate and no gain up to 125. The gain also acts
    immediately: where the entropy is a nat too high, T is divided by e^gain before the sum has changed. With `end`
    below `target` the policy explores first and is nearly greedy at the end: the target falls in even steps.

    Args:
        target: entropy in nats per action dimension; < log 2, that of the uniform distribution on [-1, 1].
        end: the target from update `over_updates` on; < log 2. None: it does not change.
        over_updates: gradient updates from `target` to `end`; >= 1.
        rate: of the sum, for each update; > 0.
        gain: change of log T for a change of the error by one nat; >= 0. 0 is SAC's controller.
        initial: T until the warm-up is over, in units of Q; in [floor, ceiling].
        floor: lower bound of T; > 0.
        ceiling: upper bound of T. Without one, T grows forever where no policy reaches the target.
        warmup: updates before T changes; >= 0. At first Q is not informative, and neither is the entropy.
        decay: of the moving average of the entropy, which is a noisy estimate; 0 <= decay < 1.
    """

    @checked
    def __init__(
        self,
        target: Finite = -1.0,
        end: Finite | None = None,
        over_updates: Count = 40_000,
        rate: Positive = 2e-3,
        gain: NonNegative = 2.0,
        initial: Positive = 0.05,
        floor: Positive = 1e-4,
        ceiling: Positive = 10.0,
        warmup: CountOrZero = 5_000,
        decay: HalfOpenShare = 0.99,
    ) -> None:
        super().__init__(target, initial, floor, ceiling, decay)
        self.rate, self.gain, self.warmup = rate, gain, warmup
        self.end, self.over_updates = target if end is None else end, over_updates
        for name, value in (("target", target), ("end", self.end)):
            if value >= math.log(2):
                raise ValueError(f"{name}={value}: must be < log 2, the entropy of the uniform distribution")

    def measure(self, measured: Measurements) -> Tensor:
        return measured.entropy()

    def present_target(self) -> Tensor:
        """Returns the target at this update, a scalar."""
        return self.target + (self.end - self.target) * (self.updates / self.over_updates).clamp_max(1)

    def error(self) -> Tensor:
        below: Tensor = self.present_target() - self.smoothed()
        return below

    def metrics(self) -> dict[str, Tensor]:
        return {**super().metrics(), "entropy": self.smoothed(), "target_entropy": self.present_target()}


class TargetESS(_Controlled):
    """Keeps the ESS share of the estimator's weights at a target: log T += rate x clip(log target - log share, -1, 1).

    A larger T makes the weights more even. T is then as low as the estimator's candidates can resolve: this concerns
    the quality of the denoiser's target, not how much the policy explores. The share rises with T immediately, by up to
    d / 2 nats per nat of T in d dimensions; the only lag is that of the moving average, 1 / (1 - decay) updates, and
    the loop does not oscillate while rate d / 2 <= (1 - decay) / 4: with the defaults, up to 25 dimensions.

    Args:
        target: ESS as a share of the candidates; in (0, 1).
        rate: largest change of log T at one update; > 0.
        initial: T until the warm-up is over, in units of Q; in [floor, ceiling].
        floor: lower bound of T; > 0.
        ceiling: upper bound of T.
        warmup: updates before T changes; >= 0.
        decay: of the moving average of the share; 0 <= decay < 1.
    """

    @checked
    def __init__(
        self,
        target: OpenShare = 0.25,
        rate: Positive = 2e-4,
        initial: Positive = 0.05,
        floor: Positive = 1e-4,
        ceiling: Positive = 10.0,
        warmup: CountOrZero = 5_000,
        decay: HalfOpenShare = 0.99,
    ) -> None:
        super().__init__(target, initial, floor, ceiling, decay)
        self.rate, self.warmup = rate, warmup

    def measure(self, measured: Measurements) -> Tensor:
        return measured.ess()

    def error(self) -> Tensor:
        share = self.smoothed().clamp_min(torch.finfo(self.log_temperature.dtype).tiny)
        return math.log(self.target) - torch.log(share)

    def metrics(self) -> dict[str, Tensor]:
        target = torch.full_like(self.log_temperature, self.target)
        return {**super().metrics(), "ess_share": self.smoothed(), "target_ess": target}
