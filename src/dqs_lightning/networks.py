"""Critic networks."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

QValue = Callable[[Tensor], Tensor]
"""Q of actions [..., B, d] at bound observations: [..., B]."""

CHUNK = 512
"""Rows that are scored at once: their hidden layers stay in a core's cache."""


REDUCTIONS = ("min", "mean")
INNER_PRECISIONS = ("auto", "float32", "bfloat16")


def inner_dtype(precision: str, like: Tensor) -> torch.dtype:
    """The type that one of `INNER_PRECISIONS` means for tensors such as `like`; only float32 is ever shortened."""
    if like.dtype is not torch.float32 or precision == "float32":
        return like.dtype
    if precision == "bfloat16":
        return torch.bfloat16
    return torch.bfloat16 if multiplies_bfloat16(like.device.type) else torch.float32


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch gives it no types
def multiplies_bfloat16(device_type: str) -> bool:
    """Whether the hardware has instructions for products in bfloat16; elsewhere they are slower than float32."""
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device_type == "cpu":
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # not in the oldest torch
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


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
        self.rest = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(hidden))
        self.last = nn.Linear(hidden[-1], 1)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Q of observation [B, o] and action [..., B, d] -> [..., B]."""
        state, weight_action = self._first(observation)
        hidden = F.linear(action, weight_action).add_(state).relu_()
        for layer in self.rest:
            hidden = layer(hidden).relu_()
        value: Tensor = self.last(hidden)
        return value.squeeze(-1)

    def _first(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """The first layer's share of the observation, and its weight for the action."""
        weight_observation, weight_action = self.first.weight.split([self.observation_dim, self.action_dim], dim=1)
        return F.linear(observation, weight_observation, self.first.bias), weight_action

    def given(self, observation: Tensor, dtype: torch.dtype) -> QValue:
        """Q with the observations [B, o] bound, its inner layers multiplied in a shorter `dtype`.

        Rounding all of a hidden layer would cost Q a share of its size, which is often more than T. So the layers act
        in full precision on the hidden state h0 of the action 0, once, and in `dtype` on h - h0 alone:
        W h = W h0 + W (h - h0). First and last layer stay in full precision. A gradient reaches the action only.
        """
        with torch.no_grad():
            state, weight_action = self._first(observation)
            hidden_at_zero, layers = state.relu(), []
            for layer in self.rest:
                output = layer(hidden_at_zero)
                layers.append((hidden_at_zero, cast(Tensor, layer.weight).to(dtype), output))
                hidden_at_zero = output.relu()
            head = self.last.weight.detach(), self.last.bias.detach()

        def q_value(action: Tensor) -> Tensor:
            hidden = F.linear(action, weight_action).add_(state).relu_()
            for at_zero, weight, output_at_zero in layers:
                change = F.linear((hidden - at_zero).to(dtype), weight)
                hidden = change.to(state.dtype).add_(output_at_zero).relu_()
            value: Tensor = F.linear(hidden, *head)
            return value.squeeze(-1)

        return q_value


class CriticPair(nn.Module):
    """Two independent Q networks and what is believed of them.

    Args:
        observation_dim: dimension of the observation.
        action_dim: dimension of the action.
        hidden: widths of the hidden layers.
        reduction: "min" counters overestimation (clipped double Q, arXiv 1802.09477), at the price of a bias: where
            the two differ, every backup takes the lower one, and the error adds up to 1 / (1 - gamma) of them. "mean"
            has no such bias and half the variance.

    Raises:
        ValueError: for another reduction.
    """

    def __init__(
        self, observation_dim: int, action_dim: int, hidden: Sequence[int] = (256, 256), reduction: str = "min"
    ) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f"critic_reduction={reduction!r}: allowed are {', '.join(REDUCTIONS)}")
        self.reduction = reduction
        self.members = nn.ModuleList(QNetwork(observation_dim, action_dim, hidden) for _ in range(2))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Both values: observation [B, o], action [..., B, d] -> [2, ..., B]."""
        return torch.stack([member(observation, action) for member in self.members])

    def value(self, observation: Tensor, action: Tensor) -> Tensor:
        """Minimum or mean over the pair: [..., B]."""
        first, second = (member(observation, action) for member in self.members)
        return self._reduced(first, second)

    def _reduced(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.minimum(first, second) if self.reduction == "min" else (first + second) / 2

    def given(self, observation: Tensor, dtype: torch.dtype) -> QValue:
        """`value` for many actions of one observation each, multiplied in `dtype` (see `QNetwork.given`)."""
        first, second = (cast(QNetwork, member).given(observation, dtype) for member in self.members)

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
    for old, new in zip(target.parameters(), online.parameters(), strict=True):
        old.lerp_(new, tau)
