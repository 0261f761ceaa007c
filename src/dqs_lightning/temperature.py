"""Temperature schedules and controllers: T in pi(a|s) = exp(Q(s, a) / T), in units of Q."""

import math
from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor, nn

MAX_ERROR = 1.0
"""A controller's error is clipped to this many nats (of entropy, or of log ESS) at either side."""


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


class _RunningMean(nn.Module):
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


class Relative(Temperature):
    """T = tau x the spread of Q: the policy is as sharp whatever the scale of the rewards.

    The spread is the standard deviation of Q over uniform actions (`Measurements.q_spread`), averaged over states
    and, exponentially, over updates. T follows a growing Q at once; nothing is fed back, so nothing can ring. Where
    Q is flat in all states but few, T is small.

    Args:
        tau: T in units of the spread; > 0.
        decay: of the running mean, a mean over about 1 / (1 - decay) updates; 0 <= decay < 1.
        initial: T before the first measurement, in units of Q; >= floor.
        floor: T is never below this, in units of Q; > 0. A critic whose Q is constant in the action needs it.

    Raises:
        ValueError: for arguments out of these ranges.
    """

    def __init__(self, tau: float = 0.05, decay: float = 0.99, initial: float = 0.05, floor: float = 1e-4) -> None:
        super().__init__()
        self.tau, self.floor = _positive("tau", tau), _positive("floor", floor)
        self.initial = _positive("initial", initial)
        if initial < floor:
            raise ValueError(f"initial={initial}: allowed is a number >= floor={floor}")
        self.spread = _RunningMean(decay, self.initial / self.tau)
        self.decay = self.spread.decay

    def step(self, measured: Measurements | None = None) -> None:
        super().step(measured)
        if measured is not None:
            self.spread.add(measured.q_spread())

    def forward(self) -> Tensor:
        temperature: Tensor = (self.tau * self.spread()).clamp_min(self.floor)
        return temperature

    def metrics(self) -> dict[str, Tensor]:
        return {**super().metrics(), "q_spread": self.spread()}


class _Controlled(Temperature):
    """An integral controller: log T += rate x clip(error, -1, 1) after each update, T held in [floor, ceiling].

    The state is log T itself, held in its range, so that time spent at a wall is not wound up. The error is that of a
    running mean of the measurement, whose default before the first measurement is the target: no error, no move.
    """

    log_temperature: Tensor

    def __init__(
        self, target: float, rate: float, initial: float, floor: float, ceiling: float, warmup: int, decay: float
    ) -> None:
        super().__init__()
        self.target, self.rate = float(target), _positive("rate", rate)
        self.initial, self.floor = _positive("initial", initial), _positive("floor", floor)
        self.ceiling = _positive("ceiling", ceiling)
        if not floor <= initial <= ceiling:
            raise ValueError(f"initial={initial}: allowed is floor={floor} to ceiling={ceiling}")
        if warmup < 0:
            raise ValueError(f"warmup={warmup}: allowed is 0 or more")
        self.warmup = int(warmup)
        self.smoothed = _RunningMean(decay, self.target)
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
        super().step(measured)
        if measured is None:
            return
        self.smoothed.add(self.measure(measured))  # in the warm-up too: the first move is by a mean of many
        move = self.rate * self.error().clamp(-MAX_ERROR, MAX_ERROR)
        moved = self.log_temperature + torch.where(self.updates > self.warmup, move, 0.0)
        self.log_temperature.copy_(moved.clamp(math.log(self.floor), math.log(self.ceiling)))

    def forward(self) -> Tensor:
        return self.log_temperature.exp().clamp(self.floor, self.ceiling)


class TargetEntropy(_Controlled):
    """Holds the policy's entropy at a target: log T += rate x clip(target - entropy, -1, 1).

    The dual variable of max E[Q] subject to H(pi) >= target (SAC, arXiv 1812.05905, equation 18), with log T as the
    variable and its error clipped. The policy is a network that follows T with a lag of some thousand updates, and
    an integral controller rings when it is faster than what it controls: near the target the entropy of a Boltzmann
    policy rises by 1/2 nat per dimension and nat of T (a smooth maximum) to 1 (a corner), the loop's gain is thus
    rate / 2 to rate, and a first-order lag of L updates does not ring while gain x L <= 1/4. The default of 2e-4
    allows L = 1250 to 2500 and needs at least 11,500 updates for a factor of ten in T; ten times that rate allows 125
    to 250 and drove T to its floor before the policy had followed.

    Args:
        target: entropy in nats per action dimension; < log 2, that of the uniform law on [-1, 1].
        rate: greatest step of log T at one update; > 0.
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
        rate: float = 2e-4,
        initial: float = 0.05,
        floor: float = 1e-4,
        ceiling: float = 10.0,
        warmup: int = 5_000,
        decay: float = 0.99,
    ) -> None:
        if not -math.inf < target < math.log(2):
            raise ValueError(f"target={target}: allowed is a finite number < log 2, the uniform law's entropy")
        super().__init__(target, rate, initial, floor, ceiling, warmup, decay)

    def measure(self, measured: Measurements) -> Tensor:
        return measured.entropy()

    def error(self) -> Tensor:
        below: Tensor = self.target - self.smoothed()
        return below

    def metrics(self) -> dict[str, Tensor]:
        target = torch.full_like(self.log_temperature, self.target)
        return {**super().metrics(), "entropy": self.smoothed(), "target_entropy": target}


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
        super().__init__(target, rate, initial, floor, ceiling, warmup, decay)

    def measure(self, measured: Measurements) -> Tensor:
        return measured.ess()

    def error(self) -> Tensor:
        share = self.smoothed().clamp_min(torch.finfo(self.log_temperature.dtype).tiny)
        return math.log(self.target) - torch.log(share)

    def metrics(self) -> dict[str, Tensor]:
        target = torch.full_like(self.log_temperature, self.target)
        return {**super().metrics(), "ess_share": self.smoothed(), "target_ess": target}
