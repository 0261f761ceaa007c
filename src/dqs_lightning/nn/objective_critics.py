"""Critics of several objectives, one output layer each, and their weighted sum."""

from typing import cast

import torch
from torch import Tensor, nn

from dqs_lightning.nn.backbones import Backbone
from dqs_lightning.nn.critics import CriticPair, Head, QNetwork, Reduction


class ObjectivesNetwork(QNetwork):
    """Q_i(s, a) of m objectives, on shared hidden layers, and sum_i w_i Q_i; the last m components of s are w.

    Args:
        observation_dim: dimension o of the observation, w included.
        action_dim: dimension d of the action.
        objectives: m.
        backbone: the hidden layers; None: `MLP`.
        outputs: numbers N of each objective, whose mean is Q_i.
    """

    def __init__(
        self, observation_dim: int, action_dim: int, objectives: int, backbone: Backbone | None = None, outputs: int = 1
    ) -> None:
        super().__init__(observation_dim, action_dim, backbone, objectives * outputs)
        self.objectives = objectives

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """The weighted sum at observation [B, o] and action [..., B, d] -> [..., B]."""
        return self.head(observation)(self.features(observation, action))

    def outputs(self, observation: Tensor, action: Tensor) -> Tensor:
        """All outputs: observation [B, o] and action [..., B, d] -> [..., B m, N], states first."""
        by_objective: Tensor = super().outputs(observation, action).unflatten(-1, (self.objectives, -1))
        return by_objective.flatten(-3, -2)

    def head(self, observation: Tensor) -> Head:
        layers = self.last.weight, self.last.bias
        weight, bias = (layer.unflatten(0, (self.objectives, -1)).mean(1) for layer in layers)
        weights = observation[..., -self.objectives :]
        rows, offsets = weights @ weight, weights @ bias
        return lambda features: torch.einsum("...bf,bf->...b", features, rows) + offsets


class ObjectivesPair(CriticPair):
    """Two independent networks of the Q_i of m objectives, and one Q: the reduction of their weighted sums.

    Args:
        observation_dim: dimension of the observation, whose last m components are the weights w.
        action_dim: dimension of the action.
        objectives: m; >= 1.
        backbone: the hidden layers of each; None: `MLP`.
        reduction: see `CriticPair`.
        outputs: numbers N of each objective, whose mean is its Q_i.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        objectives: int,
        backbone: Backbone | None = None,
        reduction: Reduction = "min",
        outputs: int = 1,
    ) -> None:
        nn.Module.__init__(self)
        self.objectives, self.reduction = objectives, reduction
        self.members = nn.ModuleList(
            ObjectivesNetwork(observation_dim, action_dim, objectives, backbone, outputs) for _ in range(2)
        )

    def value(self, observation: Tensor, action: Tensor) -> Tensor:
        first, second = (cast(Tensor, member(observation, action)) for member in self.members)
        return self._reduced(first, second)

    def reduce(self, outputs: Tensor, observation: Tensor) -> Tensor:
        """Q of `outputs` at observations [B, o]: [2, ..., B m, N] -> [..., B]."""
        weighted = self._by_objective(outputs, observation) * observation[..., -self.objectives :]
        return self._reduced(*weighted.sum(-1))

    def each(self, outputs: Tensor, observation: Tensor) -> Tensor:
        """Each Q_i of `outputs`, the mean over the pair: [2, ..., B m, N] -> [..., B, m]."""
        return self._by_objective(outputs, observation).mean(0)

    def _by_objective(self, outputs: Tensor, observation: Tensor) -> Tensor:
        q_values: Tensor = outputs.mean(-1).unflatten(-1, (len(observation), self.objectives))
        return q_values
