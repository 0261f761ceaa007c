"""Normalisation of observations by their running moments."""

import torch
from torch import Tensor, nn


class ObservationNorm(nn.Module):
    """Normalises observations, (s - mean) / standard deviation, over all batches so far, each of equal weight.

    Args:
        dim: dimension o of the observation.
        unchanged: last numbers of it that are passed on as they are, such as the weights of objectives.
    """

    EPSILON = 1e-4
    """Added to the variance, so that components which were constant are not amplified when they change."""

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, dim: int, unchanged: int = 0) -> None:
        super().__init__()
        self.unchanged = unchanged
        self.register_buffer("mean", torch.zeros(dim - unchanged))
        self.register_buffer("variance", torch.ones(dim - unchanged))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, observation: Tensor) -> Tensor:
        """[..., o] -> [..., o]."""
        changed, rest = self._split(observation)
        mean, variance = self._statistics(rest)
        changed = (changed - mean) * torch.rsqrt(variance + self.EPSILON)
        return torch.cat([changed, rest], -1) if self.unchanged else changed

    def _split(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        changed, rest = observation.split([observation.shape[-1] - self.unchanged, self.unchanged], -1)
        return changed, rest

    def _statistics(self, unchanged: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and variance for observations whose last numbers are these."""
        return self.mean, self.variance

    def inverse(self, normalised: Tensor) -> Tensor:
        """Returns the observations that `forward` maps to these, [..., o]."""
        changed, rest = self._split(normalised)
        mean, variance = self._statistics(rest)
        changed = changed * torch.sqrt(variance + self.EPSILON) + mean
        return torch.cat([changed, rest], -1) if self.unchanged else changed

    def moments(self, observation: Tensor) -> Tensor:
        """Returns the mean of a batch [B, o] and of its square, [2, o], both about the present mean.

        Numbers that are passed on as they are have none.
        """
        shifted = self._split(observation)[0] - self.mean
        return torch.stack([shifted.mean(0), shifted.square().mean(0)])

    @torch.no_grad()
    def update(self, moments: Tensor) -> None:
        """Updates mean and variance with the `moments` of a batch."""
        first, second = moments
        self.batches += 1
        weight = 1 / self.batches
        self.mean += weight * first
        self.variance.lerp_(second, weight).sub_((weight * first).square())


class TaskObservationNorm(ObservationNorm):
    """Normalises the observations of each task by their own moments.

    The same numbers may mean different things in two tasks, such as the angle of a joint in one body and a speed in
    another. The one-hot of the task is the end of an observation (`MultiTask`), and is passed on as it is.

    Args:
        dim: dimension o of the observation, with the one-hot.
        tasks: number of tasks K.
    """

    def __init__(self, dim: int, tasks: int) -> None:
        super().__init__(dim, tasks)
        self.mean, self.variance = self.mean.repeat(tasks, 1), self.variance.repeat(tasks, 1)

    def _statistics(self, unchanged: Tensor) -> tuple[Tensor, Tensor]:
        task = unchanged.argmax(-1)
        return self.mean[task], self.variance[task]

    def moments(self, observation: Tensor) -> Tensor:
        """Returns the moments of each task, [2, K, o - K]; the present ones of a task that is not in the batch."""
        changed, one_hot = self._split(observation)
        shifted = (changed - self._statistics(one_hot)[0]).unsqueeze(-2)
        rows = one_hot.sum(0).unsqueeze(-1)
        both = torch.stack([shifted, shifted.square()])
        means = (one_hot.unsqueeze(-1) * both).sum(1) / rows.clamp_min(1)
        absent = torch.stack([torch.zeros_like(self.variance), self.variance])
        return torch.where(rows > 0, means, absent)
