"""Critic losses: what the critics predict, the mean return or its quantiles."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from dqs_lightning.agents.backups import Backup
from dqs_lightning.ranges import Count, CountOrZero, checked


class CriticLoss(ABC):
    """Fits the critics' outputs to the return. Q is the mean of a critic's outputs, whatever the loss.

    Subclass it and write `returns` and `loss`; the subclass can then be named in a configuration.

    Attributes:
        outputs: numbers that each critic predicts, N; >= 1.
        policy_actions: actions of the policy that the backup must draw for each state.
    """

    outputs: int = 1
    policy_actions: int = 0

    def check(self, backup: Backup) -> None:
        """Checks that the backup draws enough actions.

        Raises:
            ValueError: naming both.
        """
        if self.policy_actions > backup.policy_actions:
            raise ValueError(
                f"backup={type(backup).__name__} with policy_actions={backup.policy_actions}: "
                f"critic_loss={type(self).__name__} needs at least {self.policy_actions}"
            )

    @abstractmethod
    def returns(self, value: Tensor, outputs: Tensor) -> Tensor:
        """Returns values that represent the distribution of the return from s', [B, M].

        Args:
            value: V(s') of the backup, [B].
            outputs: of the target critics at `policy_actions` or more actions of the policy at s', [2, P, B, N].
        """

    @abstractmethod
    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Returns the loss of outputs [2, B, N] with targets [B, M], which have no gradient: a scalar."""


class SquaredError(CriticLoss):
    """E (Q(s, a) - y)^2, of both critics: the mean return, as in the paper."""

    def returns(self, value: Tensor, outputs: Tensor) -> Tensor:
        return value.unsqueeze(-1)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(outputs, target.expand_as(outputs))


class Quantiles(CriticLoss):
    """Quantile regression, with the largest quantiles left out of the target (TQC, arXiv 2005.04269).

    Output i of N fits the quantile of level (i + 1/2) / N of the return, by the Huber loss of arXiv 1710.10044 with
    kappa = 1. The target is the set of both target critics' quantiles without the 2 `dropped` largest. This
    pessimism grows with the variance of the return; that of the minimum of two means grows with their disagreement.
    Q is the mean of all N outputs. It is linear in the last hidden layer, so that an estimator's K candidates cost as
    much as with one output.

    The target quantiles are those of the backup's first action, shifted so that their mean, before truncation, is V:
    with `ExpectedQ` they are not shifted.

    Args:
        num: N of each critic; >= 1.
        dropped: quantiles left out for each critic; >= 0 and < `num`.
    """

    policy_actions = 1

    @checked
    def __init__(self, num: Count = 25, dropped: CountOrZero = 2) -> None:
        if dropped >= num:
            raise ValueError(f"dropped={dropped}: must be < num={num}")
        self.num, self.dropped, self.outputs = num, dropped, num

    def returns(self, value: Tensor, outputs: Tensor) -> Tensor:
        pool = outputs[:, 0].transpose(0, 1).flatten(1)  # [B, 2N]
        shifted = pool - pool.mean(-1, keepdim=True) + value.unsqueeze(-1)
        return shifted.sort(-1).values[:, : 2 * (self.num - self.dropped)] if self.dropped else shifted

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        levels = (torch.arange(self.num, dtype=outputs.dtype, device=outputs.device).unsqueeze(-1) + 0.5) / self.num
        # N x M errors for each entry: in place and without autograd, which would store them; the slope is known.
        error = target.unsqueeze(-2) - outputs.detach().unsqueeze(-1)  # [2, B, N, M]
        clipped = error.clamp(-1, 1)
        slope = (levels - (error < 0).to(levels.dtype)).abs_().mul_(clipped)  # of Huber's loss along the error
        value = error.sub_(clipped, alpha=0.5).mul_(slope).mean()
        return value - ((outputs - outputs.detach()) * slope.mean(-1)).mean()
