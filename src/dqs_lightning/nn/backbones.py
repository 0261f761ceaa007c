"""Backbones: the hidden layers between a network's first and last linear layer, by name."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, cast

import torch
from torch import Tensor, nn

from dqs_lightning.ranges import Count, checked, within

MAX_BLOCKS = 1000
"""Blocks of a `SimBa`, which makes a list of them."""

Activation = Callable[[Tensor], Tensor]
Apply = Callable[[nn.Linear, Tensor], Tensor]
"""Applies a linear layer: `layer(hidden)`, or the same in lower precision."""


def apply(layer: nn.Linear, hidden: Tensor) -> Tensor:
    """As it is."""
    return cast(Tensor, layer(hidden))


class Backbone(ABC):
    """The hidden part of critics and actors. The network owns the first linear layer, of which each input's share is
    computed once however often another input changes, and the last.

    A backbone is a recipe and holds no weight: `layers` makes them, and calling it applies them. Inputs are what the
    first layer gives, before any activation, and may be written over.
    """

    width: int
    """Outputs of the network's first layer."""
    features: int
    """Inputs of its last."""

    @abstractmethod
    def layers(self) -> nn.ModuleList:
        """New layers."""

    @abstractmethod
    def __call__(self, layers: nn.ModuleList, hidden: Tensor, activation: Activation, apply: Apply = apply) -> Tensor:
        """[..., width] -> [..., features]. Linear layers go through `apply`, in an order that is always the same."""


class MLP(Backbone):
    """A plain multilayer perceptron.

    Args:
        hidden: widths of the hidden layers, one or more, each >= 1.
        layer_norm: normalise each hidden layer before its activation, which keeps critics from running away to large
            values (arXiv 2302.02948).
    """

    @checked
    def __init__(self, hidden: Sequence[Count] = (256, 256), layer_norm: bool = False) -> None:
        self.hidden, self.layer_norm = tuple(hidden), layer_norm
        self.width, self.features = self.hidden[0], self.hidden[-1]

    def layers(self) -> nn.ModuleList:
        linear = [nn.Linear(a, b) for a, b in pairwise(self.hidden)]
        return nn.ModuleList([*linear, *(nn.LayerNorm(width) for width in self.hidden if self.layer_norm)])

    def __call__(self, layers: nn.ModuleList, hidden: Tensor, activation: Activation, apply: Apply = apply) -> Tensor:
        depth = len(self.hidden) - 1
        for i in range(depth + 1):
            if i:
                hidden = apply(cast(nn.Linear, layers[i - 1]), hidden)
            if self.layer_norm:
                hidden = layers[depth + i](hidden)
            hidden = activation(hidden)
        return hidden


class SimBa(Backbone):
    """Residual blocks, each a normalised two-layer perceptron, and a last normalisation (SimBa, arXiv 2410.09754).

    Meant for normalised observations, as there: `normalise_observations` of the agent.

    Args:
        width: of the residual stream; >= 1.
        blocks: 1 to 1000.
        expansion: inner width of a block over `width`; >= 1.
    """

    @checked
    def __init__(
        self, width: Count = 128, blocks: Annotated[int, within(1, MAX_BLOCKS)] = 1, expansion: Count = 4
    ) -> None:
        self.width, self.features, self.blocks, self.expansion = width, width, blocks, expansion

    def layers(self) -> nn.ModuleList:
        inner = self.expansion * self.width
        layers: list[nn.Module] = []
        for _ in range(self.blocks):
            layers += [nn.LayerNorm(self.width), nn.Linear(self.width, inner), nn.Linear(inner, self.width)]
        return nn.ModuleList([*layers, nn.LayerNorm(self.width)])

    def __call__(self, layers: nn.ModuleList, hidden: Tensor, activation: Activation, apply: Apply = apply) -> Tensor:
        for i in range(0, 3 * self.blocks, 3):
            norm, up, down = layers[i], cast(nn.Linear, layers[i + 1]), cast(nn.Linear, layers[i + 2])
            hidden = hidden + apply(down, activation(apply(up, norm(hidden))))
        features: Tensor = layers[-1](hidden)
        return features


class FeedForward(nn.Module):
    """Inputs [..., i] -> outputs [..., o] through a backbone, with ReLU.

    Args:
        inputs: dimension i.
        outputs: dimension o.
        backbone: the hidden layers; None: `MLP`.
    """

    def __init__(self, inputs: int, outputs: int, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.backbone = backbone or MLP()
        self.first = nn.Linear(inputs, self.backbone.width)
        self.rest = self.backbone.layers()
        self.last = nn.Linear(self.backbone.features, outputs)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.backbone(self.rest, self.first(x), torch.relu_))
        return outputs
