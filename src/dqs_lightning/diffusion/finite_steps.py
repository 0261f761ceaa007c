"""Optimizer steps that are left out after a non-finite value."""

from typing import Any

import torch
from torch import Tensor

from dqs_lightning.diffusion.support import LogProb


class FiniteSteps:
    """Takes the steps of an optimizer as long as the watched energy and all gradients are finite, and then none.

    There is no device-to-host sync except in `check`.

    Args:
        optimizer: a fused one, which makes no step where its `found_inf` is 1, as `torch.amp.GradScaler` uses it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer: Any = optimizer
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.taken = torch.zeros((), dtype=torch.int64, device=self.parameters[0].device)
        self.finite = torch.ones(2, dtype=torch.bool, device=self.taken.device)
        self._sums: list[Tensor] = []

    def watch(self, log_prob: LogProb) -> LogProb:
        """Returns the same energy; its values count for the next step."""

        def watched(action: Tensor) -> Tensor:
            value = log_prob(action)
            self._sums.append(value.detach().sum())
            return value

        return watched

    def step(self) -> None:
        """Take a step with the gradients that are there, if none so far was to be left out."""
        norms: Any = torch._foreach_norm([p.grad for p in self.parameters if p.grad is not None])
        self.finite &= torch.isfinite(torch.stack([torch.stack(self._sums).sum(), torch.stack(norms).sum()]))
        self._sums = []
        ok = self.finite.all()
        self.taken += ok
        self.optimizer.found_inf = (~ok).float()
        self.optimizer.step()

    def check(self) -> None:
        """Raises a ValueError that names the first step that was left out, and the cause. One device-to-host sync."""
        values, gradients = self.finite.tolist()
        if not (values and gradients):
            cause = "the gradient of the loss" if values else "a value of log_prob"
            raise ValueError(
                f"update {self.taken.item()}: {cause} is not finite; the weights are those of the update before"
            )
