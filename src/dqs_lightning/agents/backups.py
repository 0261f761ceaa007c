"""Backups: the value V(s') in the critic's target r + gamma (1 - terminated) V(s')."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from dqs_lightning.diffusion import LogProb, Support


class Backup(ABC):
    """The value of a state under the target critic.

    Subclass it and write `__call__`; the subclass can then be named in a config.
    """

    @abstractmethod
    def __call__(self, q_value: LogProb, action: Tensor, temperature: Tensor, support: Support) -> Tensor:
        """V [B].

        Args:
            q_value: the target critics' minimum, actions [..., B, d] -> [..., B].
            action: one action of the policy for each state, [B, d].
            temperature: T > 0, a scalar tensor.
            support: the action set.
        """


class Plain(Backup):
    """V(s) = min_i Q_i(s, a), one a from the policy: the paper's backup, without an entropy term.

    This evaluates the policy's return and no more. It does not make exp(Q/T) the optimum of anything: for the
    optimal Q, the Boltzmann policy of Q is worse than the greedy one, and an actor that follows Q tends to
    collapse onto one of several equal actions.
    """

    def __call__(self, q_value: LogProb, action: Tensor, temperature: Tensor, support: Support) -> Tensor:
        return q_value(action)


class Soft(Backup):
    """V(s) = T log E_{a ~ U}[exp(Q(s, a) / T)], U uniform on the action set: the entropy-regularised backup.

    Its fixed point is the optimum of return minus T KL(pi || U) for each step, whose policy IS exp(Q/T); V lies
    between the mean and the maximum of Q. The expectation is a mean over uniform candidates, which cover the
    action set in one to three dimensions only: in more, V is estimated too low and the greater T, the better.

    Args:
        num_candidates: uniform actions a state; >= 1. The policy is not consulted.
    """

    def __init__(self, num_candidates: int = 64) -> None:
        if num_candidates < 1:
            raise ValueError(f"num_candidates={num_candidates}: allowed is 1 or more")
        self.num_candidates = int(num_candidates)

    def __call__(self, q_value: LogProb, action: Tensor, temperature: Tensor, support: Support) -> Tensor:
        candidates = support.uniform(self.num_candidates, action)
        log_sum: Tensor = torch.logsumexp(q_value(candidates) / temperature, 0)
        return temperature * (log_sum - math.log(self.num_candidates))
