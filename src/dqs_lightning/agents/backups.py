"""Backups: the value V(s') in the critic's target r + gamma (1 - terminated) V(s')."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dqs_lightning.diffusion import LogProb, Support
from dqs_lightning.diffusion.estimators import gradient_of
from dqs_lightning.diffusion.proposals import LOG_2PI, Component, Mixture
from dqs_lightning.ranges import Count, CountOrZero, Positive, Share, checked


class BackupInput(NamedTuple):
    """Inputs of a backup at the states s' of a batch.

    Attributes:
        q_value: of the target critics, actions [..., B, d] -> [..., B].
        actions: independent draws of the policy at each state, [P, B, d].
        policy_q: their Q, [P, B]; for a backup that `weighs_candidates` those that the critic loss needs.
        temperature: T > 0, a scalar tensor or [B].
        support: the action set.
        entropy: computes the policy's differential entropy at each state, over all dimensions, in nats, [B].
    """

    q_value: LogProb
    actions: Tensor
    policy_q: Tensor
    temperature: Tensor
    support: Support
    entropy: Callable[[], Tensor]


class Backup(ABC):
    """Computes the value of a state under the target critic.

    Subclass it and write `value`; the subclass can then be named in a configuration. Adding c to Q must add c to V.

    Attributes:
        policy_actions: actions of the policy that are drawn for each state, P; >= 0.
        weighs_candidates: whether Q is evaluated at many candidates of a state, none of which alone is the result.
            These may be evaluated in lower precision.
    """

    policy_actions: int = 1
    weighs_candidates: bool = False

    @abstractmethod
    def value(self, given: BackupInput) -> Tensor:
        """Returns V [B]. Called with gradients disabled."""


class ExpectedQ(Backup):
    """V(s) = Q(s, a), one a from the policy: the paper's backup, without an entropy term.

    Q is the reduction of the two critics (`critic_reduction`). It evaluates the policy's return without bias and with
    the variance of one draw. exp(Q/T) is then not the optimal policy of any objective: for the optimal Q, the
    Boltzmann policy is worse than the greedy one, and an actor that follows Q tends to collapse to one of several equal
    actions.
    """

    def value(self, given: BackupInput) -> Tensor:
        return given.policy_q[0]


class BestOf(Backup):
    """V(s) = max_p Q(s, a_p) over P actions of the policy: the value of acting by the best of P (arXiv 2007.11091).

    The policy keeps the temperature that exploration needs, and the critic evaluates a greedier one. The maximum also
    selects the critic's errors, the more, the larger P is.

    Args:
        policy_actions: P; >= 1. With 1 it is `ExpectedQ`.
    """

    @checked
    def __init__(self, policy_actions: Count = 4) -> None:
        self.policy_actions = policy_actions

    def value(self, given: BackupInput) -> Tensor:
        return given.policy_q.amax(0)


class MixtureBackup(Backup):
    """Uses candidates from a mixture, weighted by its exact density. Subclass it and write `value`.

    One part is uniform, the others are normals within the set (in the support's latent x), at each width around each
    of the P policy actions, shifted by one gradient step c = x + clip(width^2 grad log density(x), +- clip width). The
    step is that from a point of a normal distribution of this width to its mean. Every component has its fixed share of
    the candidates, normals in mirrored pairs. A wrong policy costs variance, and through it bias, but the estimate
    converges for every policy.

    Args:
        num_candidates: J, evaluations of Q a state besides those of the gradient steps, which cost 2 P more; >= 1.
        policy_actions: P; >= 0. With 0 all candidates are uniform and the policy is not used.
        widths: standard deviations of the normals, in units of the latent (those of the action, on a Box); each > 0.
        clip: longest gradient step in each dimension, in units of the width; > 0. None: no step.
        uniform_share: smallest share of uniform candidates; 0 < uniform_share <= 1.

    Raises:
        ValueError: for arguments out of these ranges, or fewer candidates than components.
    """

    weighs_candidates = True

    @checked
    def __init__(
        self,
        num_candidates: Count = 64,
        policy_actions: CountOrZero = 4,
        widths: tuple[Positive, ...] = (0.03, 0.1, 0.3),
        clip: Positive | None = 1.0,
        uniform_share: Share = 0.25,
    ) -> None:
        self.num_candidates, self.policy_actions = num_candidates, policy_actions
        self.widths, self.clip, self.uniform_share = widths, clip, uniform_share
        components = len(self.widths) * self.policy_actions
        self._each = int(num_candidates * (1 - uniform_share)) // components if components else 0
        if components and uniform_share < 1 and not self._each:
            least = math.ceil(components / (1 - uniform_share))
            raise ValueError(f"num_candidates={num_candidates}: must be >= {least}")
        self._uniform = self.num_candidates - components * self._each

    def _candidates(self, given: BackupInput) -> tuple[Tensor, Tensor]:
        """Q and log(1 / q) of the candidates, [J, B] each, q the density of their mixture over the action set."""
        q_value, support = given.q_value, given.support
        actions = given.actions[: self.policy_actions]
        batch, dim = actions.shape[1:]
        normals: list[Component] = []
        if self._each and len(actions):
            start = support.from_action(actions)
            shift = torch.zeros_like(start)
            if self.clip is not None:
                _, shift = gradient_of(lambda a: q_value(a) / given.temperature, start, support)
            for width in self.widths:
                reach = width * (self.clip or 0.0)
                center = support.project(start + (width**2 * shift).clamp(-reach, reach))
                normals.append(Component(center, start.new_full((1, 1, 1), width), self._each))
        mixture = Mixture(support, normals, self._uniform)
        x = mixture.draw(actions.new_empty(batch, dim))
        log_density = mixture.log_density(x) - support.dims(dim) / 2 * LOG_2PI
        return q_value(support.to_action(x)).to(x.dtype), support.log_jacobian(x) - log_density


class Soft(MixtureBackup):
    """V(s) = T log E_{a ~ U}[exp(Q(s, a) / T)], U uniform on the action set: the entropy-regularised backup.

    Its fixed point is the optimum of return minus T KL(pi || U) for each step, whose policy is exp(Q/T); V is
    between the mean and the maximum of Q. With candidates a_j of density q (arguments: `MixtureBackup`),
    V = T (logsumexp_j(Q_j / T - log q(a_j)) - log J - log volume): exp(V/T) is unbiased, V is too low on average
    (Jensen's inequality).

    Bias for a policy that is exp(Q/T), with the defaults, in units of T: at most 0.3 in 6 dimensions and 1 in 21 for
    one mode along the axes; 0.3 and 5.5 for a correlated one; 2 and 11 for a product of two-mode densities, whose 2^d
    modes a few draws do not cover (benchmarks/quality/backup_coverage.py). Prefer `SoftPolicyValue` there. Uniform
    candidates alone (policy_actions=0) are enough in one dimension, and in two for T that is not small: in 6 they are
    too low by 1 to 150.
    """

    def value(self, given: BackupInput) -> Tensor:
        q, log_inverse = self._candidates(given)
        top = q.amax(0)  # taken out before the division: Q / T has large steps in float32
        log_sum = torch.logsumexp((q - top) / given.temperature + log_inverse, 0)
        log_mean = log_sum - math.log(len(q)) - given.support.log_volume(given.actions.shape[-1])
        value: Tensor = top + given.temperature * log_mean
        return value


class SelfNormalised(MixtureBackup):
    """V(s) = E[Q(s, a)] over the Boltzmann distribution exp(Q(s, a) / T) itself, whatever the policy has learned.

    Self-normalised importance sampling: V = sum_j w_j Q_j, w = softmax(Q_j / T - log q(a_j)), with candidates a_j of
    density q (arguments: `MixtureBackup`). It is the value of following exp(Q/T) without an entropy term: that of
    `ExpectedQ` for a policy that is exp(Q/T), with less variance in few dimensions.

    The bias is of either sign: too low where modes are missed, too high where the gradient steps gather the candidates
    at the maximum. With a policy that is exp(Q/T) it is within 0.4 T in 6 dimensions for one mode and within 2 T for a
    product of two-mode densities; in 21 it comes to several T, at worst 15 (benchmarks/quality/backup_coverage.py).
    """

    def value(self, given: BackupInput) -> Tensor:
        q, log_inverse = self._candidates(given)
        top = q.amax(0)
        weight = torch.softmax((q - top) / given.temperature + log_inverse, 0)
        return top + (weight * (q - top)).sum(0)


class SoftPolicyValue(Backup):
    """V(s) = E_{a ~ pi}[Q(s, a)] + T (H(pi(.|s)) - log volume): the Gibbs variational value.

    It equals `Soft`'s value where pi is exp(Q/T) and is below it by T KL(pi || exp(Q/T)) elsewhere; as an evaluation
    of pi under return minus T KL(pi || U) it has no bias beyond that of the entropy given, in any number of
    dimensions. The expectation is a mean over P draws, of standard deviation sqrt(Var_pi Q / P): T sqrt(d / 2 P) for
    a normal distribution in d dimensions, T sqrt(d / P) in a corner.

    Args:
        policy_actions: P; >= 1.
    """

    @checked
    def __init__(self, policy_actions: Count = 4) -> None:
        self.policy_actions = policy_actions

    def value(self, given: BackupInput) -> Tensor:
        volume = given.support.log_volume(given.actions.shape[-1])
        return given.policy_q.mean(0) + given.temperature * (given.entropy() - volume)
