"""Critic networks."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class QNetwork(nn.Module):
    """MLP Q(s, a) with ReLU, for one action a state or for many.

    The first layer acts on the concatenation (s, a), written as the sum of its two halves, so that many actions
    of one state share the state's half.

    Args:
        observation_dim: dimension o of the observation.
        action_dim: dimension d of the action.
        hidden: widths of the hidden layers, at least one.
    """

    def __init__(self, observation_dim: int, action_dim: int, hidden: Sequence[int] = (256, 256)) -> None:
        super().__init__()
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.first = nn.Linear(observation_dim + action_dim, hidden[0])
        self.rest = nn.Sequential(
            *(nn.Sequential(nn.Linear(a, b), nn.ReLU(inplace=True)) for a, b in pairwise(hidden)),
            nn.Linear(hidden[-1], 1),
        )

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Q of observation [B, o] and action [..., B, d] -> [..., B]."""
        weight_o, weight_a = self.first.weight.split([self.observation_dim, self.action_dim], dim=1)
        state = F.linear(observation, weight_o, self.first.bias)
        hidden = F.linear(action, weight_a).add_(state).relu_()
        value: Tensor = self.rest(hidden)
        return value.squeeze(-1)


class CriticPair(nn.Module):
    """Two independent Q networks; their minimum counters overestimation (clipped double Q, arXiv 1802.09477)."""

    def __init__(self, observation_dim: int, action_dim: int, hidden: Sequence[int] = (256, 256)) -> None:
        super().__init__()
        self.members = nn.ModuleList(QNetwork(observation_dim, action_dim, hidden) for _ in range(2))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Both values: observation [B, o], action [..., B, d] -> [2, ..., B]."""
        return torch.stack([member(observation, action) for member in self.members])

    def minimum(self, observation: Tensor, action: Tensor) -> Tensor:
        """min over the pair: [..., B]."""
        first, second = (member(observation, action) for member in self.members)
        return torch.minimum(first, second)


@torch.no_grad()
def soft_update(target: nn.Module, online: nn.Module, tau: float) -> None:
    """Polyak averaging, target <- (1 - tau) target + tau online, parameter by parameter."""
    for old, new in zip(target.parameters(), online.parameters(), strict=True):
        old.lerp_(new, tau)
