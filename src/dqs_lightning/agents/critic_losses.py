"""What a critic learns of the return: its mean alone, or its whole law."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dqs_lightning.ranges import at_least


class CriticLoss(ABC):
    """How the critics' outputs are fitted to the return. Q is the mean of a critic's outputs, whatever the loss.

    Subclass it and write `returns` and `loss`; the subclass can then be named in a config.

    Attributes:
        outputs: numbers that each critic gives, N; >= 1.
        policy_actions: actions of the policy that it wants of the backup for each state.
    """

    outputs: int = 1
    policy_actions: int = 0

    @abstractmethod
    def returns(self, value: Tensor, outputs: Callable[[], Tensor]) -> Tensor:
        """Values that stand for the law of the return from s', [B, M].

        Args:
            value: V(s') as the backup has it, [B].
            outputs: gives the target critics' outputs at one action of the policy at s', [2, B, N]; computed only when
                called.
        """

    @abstractmethod
    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Of outputs [2, B, N] against targets [B, M] that carry no gradient: a scalar."""


class SquaredError(CriticLoss):
    """E (Q(s, a) - y)^2, of both critics: the mean return, as in the paper."""

    def returns(self, value: Tensor, outputs: Callable[[], Tensor]) -> Tensor:
        return value.unsqueeze(-1)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(outputs, target.expand_as(outputs))


class Quantiles(CriticLoss):
    """Quantile regression, with the greatest quantiles left out of the target (TQC, arXiv 2005.04269).

    Output i of N fits the quantile of level (i + 1/2) / N of the return, by the Huber loss of arXiv 1710.10044 with
    kappa = 1. The target is the pool of both target critics' quantiles without its 2 `dropped` greatest: a pessimism
    that grows with the spread of the return where the minimum of two means grows with what the two disagree about.
    Q, and with it the policy's energy, is the mean of all N, which is linear in the last hidden layer: the K
    candidates of an estimator cost what they cost with one output.

    The law is taken of the action that the backup's first draw is, and moved so that before the cut its mean is V:
    with `Plain` it is that of this action itself.

    Args:
        num: N of each critic; >= 1.
        dropped: quantiles left out for each critic, >= 0, < `num`.

    Raises:
        ValueError: when a number is out of its range; the message names it.
    """

    policy_actions = 1

    def __init__(self, num: int = 25, dropped: int = 2) -> None:
        at_least("num", num, 1)
        if not 0 <= dropped < num:
            raise ValueError(f"dropped={dropped}: allowed is 0 to num - 1 = {num - 1}")
        self.num, self.dropped, self.outputs = num, dropped, num

    def returns(self, value: Tensor, outputs: Callable[[], Tensor]) -> Tensor:
        pool = outputs().transpose(0, 1).flatten(1)  # [B, 2N]
        moved = pool - pool.mean(-1, keepdim=True) + value.unsqueeze(-1)
        return moved.sort(-1).values[:, : 2 * (self.num - self.dropped)] if self.dropped else moved

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        levels = (torch.arange(self.num, dtype=outputs.dtype, device=outputs.device).unsqueeze(-1) + 0.5) / self.num
        # An entry has N x M errors: in place, and past autograd, which would keep them for a slope that is known.
        error = target.unsqueeze(-2) - outputs.detach().unsqueeze(-1)  # [2, B, N, M]
        clipped = error.clamp(-1, 1)
        slope = (levels - (error < 0).to(levels.dtype)).abs_().mul_(clipped)  # of Huber's loss along the error
        value = error.sub_(clipped, alpha=0.5).mul_(slope).mean()
        return value - ((outputs - outputs.detach()) * slope.mean(-1)).mean()
