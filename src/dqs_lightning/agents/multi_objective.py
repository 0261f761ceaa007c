"""Diffusion Q-Sampling for several objectives: one critic each, and one policy that is conditioned on their weights."""

import copy
from typing import Any, cast

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dqs_lightning.agents.base import STEPS
from dqs_lightning.agents.dqs import DQS
from dqs_lightning.diffusion.samplers import Trajectory
from dqs_lightning.nn.critics import QNetwork
from dqs_lightning.nn.objective_critics import ObjectivesPair
from dqs_lightning.nn.observation_norm import ObservationNorm
from dqs_lightning.objectives import OBJECTIVES, uniform_weights
from dqs_lightning.ranges import Count, Fraction, checked
from dqs_lightning.registry import with_arguments_of


class MultiObjectiveDQS(DQS):
    """Diffusion Q-Sampling for a reward vector of m objectives: one policy for all weights, which it observes.

    The last m components of the observation are the weights w (see `envs.Objectives`), which are not normalised. A
    critic of each objective learns Q_i(s, w, a) of the policy for w. The policy samples exp(sum_i w_i Q_i / T): Q, the
    temperature and `best_of` use the weighted sum. With V the backup's value of the weighted sum at s', and a' its
    first action of the policy, the targets are

        y_i = r_i + gamma (1 - terminated) V_i,  V_i = Q_i(s', w, a') + V - sum_j w_j Q_j(s', w, a'),

    so that sum_i w_i V_i = V: with `ExpectedQ`, V_i = Q_i(s', w, a'); an entropy term is part of each V_i.

    Since the r_i do not depend on w, each transition is one of any weights: a share of a batch's rows receive new ones.

    Args:
        observation_dim: dimension of the flat observation, weights included.
        action_dim: dimension of the action; actions are in [-1, 1].
        objectives: m; >= 1. dqs-fit sets it to that of the environment.
        relabel: probability with which a row of a batch receives new weights, uniform on the simplex; in [0, 1].
        kwargs: further arguments of `DQS`.
    """

    critic: ObjectivesPair
    target_critic: ObjectivesPair

    @with_arguments_of(DQS)
    @checked
    def __init__(
        self, /, observation_dim: int, action_dim: int, objectives: Count = 1, relabel: Fraction = 0.5, **kwargs: Any
    ) -> None:
        super().__init__(observation_dim, action_dim, **kwargs)
        if objectives > observation_dim:
            raise ValueError(f"objectives={objectives}: must be <= {observation_dim=}, which includes their weights")
        if not self.backup.policy_actions:
            raise ValueError(
                f"backup={type(self.backup).__name__} with policy_actions=0: {type(self).__name__} needs at least 1"
            )
        self.hparams.update(objectives=objectives, relabel=relabel)
        self.objectives, self.relabel = objectives, relabel
        backbone, outputs = cast(QNetwork, self.critic.members[0]).backbone, self.critic_loss.outputs
        self.critic = ObjectivesPair(observation_dim, action_dim, objectives, backbone, self.critic.reduction, outputs)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        if isinstance(self.observation_norm, ObservationNorm):
            self.observation_norm = ObservationNorm(observation_dim, objectives)

    @torch.no_grad()
    def critic_target(
        self, batch: TensorDictBase, following: Tensor, temperature: Tensor, trajectory: Trajectory
    ) -> Tensor:
        """The targets y_i, [B m, M], the objectives of a state in turn."""
        given, outputs = self.backup_input(following, temperature, trajectory, least=1)
        q_values = self.target_critic.each(outputs[:, 0], following)
        weights = following[:, -self.objectives :]
        shift = self.backup.value(given) - (weights * q_values).sum(-1)
        returns = self.critic_loss.returns((q_values + shift.unsqueeze(-1)).flatten(), outputs)
        discount = self.discount ** batch[STEPS] if STEPS in batch else self.discount
        further = (discount * ~batch["next", "terminated"]).repeat_interleave(self.objectives, 0)
        target: Tensor = batch["next", OBJECTIVES].reshape(-1, 1) + further * returns
        return target

    def losses(self, batch: TensorDictBase, with_actor: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        return super().losses(self.relabelled(batch), with_actor)

    def relabelled(self, batch: TensorDictBase) -> TensorDictBase:
        """Returns the batch [B], a share `relabel` of whose rows have new weights in both observations."""
        if not self.relabel:
            return batch
        state, weights = batch["observation"].tensor_split([-self.objectives], -1)
        drawn = uniform_weights(torch.rand_like(weights[:, 1:]))
        weights = torch.where(torch.rand_like(weights[:, :1]) < self.relabel, drawn, weights)
        seen = batch.copy()
        seen["observation"] = torch.cat([state, weights], -1)
        seen["next", "observation"] = torch.cat([batch["next", "observation"][:, : -self.objectives], weights], -1)
        return seen
