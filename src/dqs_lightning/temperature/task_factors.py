"""Temperatures of several tasks, whose Q have different scales."""

import torch
from torch import Tensor, nn

from dqs_lightning.ranges import Count, HalfOpenShare, checked
from dqs_lightning.temperature.base import ExponentialMovingAverage


class TaskFactors(nn.Module):
    """Factors f_k of several tasks: T of task k is T f_k, where T is that of `Temperature`.

    f_k is the standard deviation of the task's Q over uniform actions, divided by the mean of all tasks' (1 before the
    first measurement). The policy of a task then does not depend on the scale of the rewards of another. With
    `Relative`, T f_k is tau times the standard deviation of the task's own Q.

    Args:
        tasks: number of tasks K. The end of an observation is the one-hot of its task (`MultiTask`).
        decay: of the moving average of the measurements, as in `Relative`.
    """

    FLOOR = 1e-3
    """Lower bound of a factor, where Q does not depend on the action."""

    @checked
    def __init__(self, tasks: Count, decay: HalfOpenShare = 0.99) -> None:
        super().__init__()
        self.tasks = tasks
        self.q_std = ExponentialMovingAverage(decay, 1.0, (tasks,))

    def forward(self) -> Tensor:
        """Returns all factors, [K]."""
        q_std: Tensor = self.q_std()
        tiny = torch.finfo(q_std.dtype).tiny
        return (q_std / q_std.mean().clamp_min(tiny)).clamp_min(self.FLOOR)

    def of(self, observation: Tensor) -> Tensor:
        """Returns the factors of the tasks of observations [..., o]: [...]."""
        factors: Tensor = self()
        return factors[observation[..., -self.tasks :].argmax(-1)]

    def mean_of_each(self, observation: Tensor, value: Tensor) -> Tensor:
        """Returns the mean of values [B] at observations [B, o] for each task, [K]; NaN for a task without any."""
        one_hot = observation[..., -self.tasks :]
        return (one_hot * value.unsqueeze(-1)).sum(0) / one_hot.sum(0)

    def metrics(self) -> dict[str, Tensor]:
        """Returns scalar tensors to log."""
        return {f"temperature_factor_{index}": factor for index, factor in enumerate(self())}
