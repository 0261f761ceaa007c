"""Critic networks."""

from collections.abc import Callable
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dqs_lightning.nn.action_mask import ActionMask
from dqs_lightning.nn.backbones import Backbone, Layers
from dqs_lightning.ranges import checked

QValue = Callable[[Tensor], Tensor]
"""Q of actions [..., B, d] at bound observations: [..., B]."""

Head = Callable[[Tensor], Tensor]
"""Q of features [..., B, f]: [..., B]."""

CHUNK = 512
"""Rows that are scored at once: their hidden layers stay in a core's cache."""

Reduction = Literal["min", "mean"]


class QNetwork(Layers):
    """Q(s, a) with ReLU, for one action a state or for many.

    The first layer acts on the concatenation (s, a), written as the sum of its two halves, so that many actions
    of one state share the state's half.

    Args:
        observation_dim: dimension o of the observation.
        action_dim: dimension d of the action.
        backbone: the hidden layers; None: `MLP`.
        outputs: numbers N that the last layer gives, whose mean is Q.
        exists: which dimensions of the action exist at an observation; Q does not depend on others. None: all exist.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        backbone: Backbone | None = None,
        outputs: int = 1,
        exists: ActionMask | None = None,
    ) -> None:
        super().__init__(observation_dim + action_dim, outputs, backbone)
        self.observation_dim, self.action_dim, self.exists = observation_dim, action_dim, exists

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Q of observation [B, o] and action [..., B, d] -> [..., B]."""
        return self.outputs(observation, action).mean(-1)

    def outputs(self, observation: Tensor, action: Tensor) -> Tensor:
        """All outputs of the last layer: observation [B, o] and action [..., B, d] -> [..., B, N]."""
        outputs: Tensor = self.last(self.features(observation, action))
        return outputs

    def features(self, observation: Tensor, action: Tensor) -> Tensor:
        """Inputs of the last layer: observation [B, o] and action [..., B, d] -> [..., B, f]."""
        state, weight_action = self._first(observation)
        action = self._existing(action, observation)
        return self.backbone(self.rest, F.linear(action, weight_action).add_(state), torch.relu_)

    def head(self, observation: Tensor) -> Head:
        """The last layer as a function from features to Q at observations [B, o]."""
        # The mean of linear outputs is one linear output.
        weight, bias = self.last.weight.mean(0, keepdim=True), self.last.bias.mean(0, keepdim=True)
        return lambda features: F.linear(features, weight, bias).squeeze(-1)

    def _first(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """The first layer's share of the observation, and its weight for the action."""
        weight_observation, weight_action = self.first.weight.split([self.observation_dim, self.action_dim], dim=1)
        return F.linear(observation, weight_observation, self.first.bias), weight_action

    def _existing(self, action: Tensor, observation: Tensor) -> Tensor:
        return action if self.exists is None else torch.where(self.exists(observation), action, 0.0)

    def bind(self, observation: Tensor, dtype: torch.dtype) -> QValue:
        """Q with the observations [B, o] bound, its inner layers multiplied in a shorter `dtype`.

        Rounding all of a hidden layer would cost Q a share of its size, which is often more than T. So the layers act
        in full precision on the hidden state h0 of the action 0, once, and in `dtype` on h - h0 alone:
        W h = W h0 + W (h - h0). First and last layer stay in full precision. For gradients of the action.
        """
        at_zero: list[tuple[Tensor, Tensor, Tensor]] = []

        def keep(layer: nn.Linear, hidden: Tensor) -> Tensor:
            output: Tensor = layer(hidden)
            at_zero.append((hidden, layer.weight.to(dtype), output))
            return output.clone()

        with torch.no_grad():
            state, weight_action = self._first(observation)
            self.backbone(self.rest, state.clone(), torch.relu_, keep)
            head = self.head(observation)

        def q_value(action: Tensor) -> Tensor:
            known, action = iter(at_zero), self._existing(action, observation)

            def near(layer: nn.Linear, hidden: Tensor) -> Tensor:
                hidden_at_zero, weight, output = next(known)
                change = F.linear((hidden - hidden_at_zero).to(dtype), weight)
                return change.to(state.dtype).add_(output)

            return head(self.backbone(self.rest, F.linear(action, weight_action).add_(state), torch.relu_, near))

        return q_value


class CriticPair(nn.Module):
    """Two independent Q networks and their reduction to one Q.

    Args:
        observation_dim: dimension of the observation.
        action_dim: dimension of the action.
        backbone: the hidden layers of each; None: `MLP`.
        reduction: "min" counters overestimation (clipped double Q, arXiv 1802.09477), at the price of a bias: where
            the two differ, every backup takes the lower one, and the error adds up to 1 / (1 - gamma) of them. "mean"
            has no such bias and half the variance.
        outputs: numbers N that each gives, whose mean is its Q.
        exists: see `QNetwork`.
    """

    @checked
    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        backbone: Backbone | None = None,
        reduction: Reduction = "min",
        outputs: int = 1,
        exists: ActionMask | None = None,
    ) -> None:
        super().__init__()
        self.reduction = reduction
        sizes = observation_dim, action_dim
        self.members = nn.ModuleList(QNetwork(*sizes, backbone, outputs, exists) for _ in range(2))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Both values: observation [B, o], action [..., B, d] -> [2, ..., B]."""
        return torch.stack([member(observation, action) for member in self.members])

    def outputs(self, observation: Tensor, action: Tensor) -> Tensor:
        """All outputs of both: observation [B, o], action [..., B, d] -> [2, ..., B, N]."""
        return torch.stack([cast(QNetwork, member).outputs(observation, action) for member in self.members])

    def value(self, observation: Tensor, action: Tensor) -> Tensor:
        """Minimum or mean over the pair: [..., B]."""
        return self.reduce(self.outputs(observation, action), observation)

    def reduce(self, outputs: Tensor, observation: Tensor) -> Tensor:
        """Q of `outputs` at observations [B, o]: [2, ..., B, N] -> [..., B]."""
        return self._reduced(*outputs.mean(-1))

    def _reduced(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.minimum(first, second) if self.reduction == "min" else (first + second) / 2

    def bind(self, observation: Tensor, dtype: torch.dtype) -> QValue:
        """`value` for many actions of one observation each, multiplied in `dtype` (see `QNetwork.bind`)."""
        first, second = (cast(QNetwork, member).bind(observation, dtype) for member in self.members)

        def value(action: Tensor) -> Tensor:
            return self._reduced(first(action), second(action))

        def in_chunks(action: Tensor) -> Tensor:
            if action.ndim < 3 or action.device.type != "cpu":
                return value(action)
            rows = action.flatten(0, -3)
            chunks = rows.split(max(1, CHUNK // len(observation)))
            scored: Tensor = torch.cat([value(chunk) for chunk in chunks])
            return scored.view(action.shape[:-1])

        return in_chunks


@torch.no_grad()
def soft_update(target: nn.Module, online: nn.Module, tau: float) -> None:
    """Polyak averaging, target <- (1 - tau) target + tau online, parameter by parameter."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), tau)
