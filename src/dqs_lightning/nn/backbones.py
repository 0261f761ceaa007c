"""Backbones: the hidden layers between a network's first and last linear layer, by name; and their precision."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Literal, cast

import torch
from torch import Tensor, nn

from dqs_lightning.ranges import Count, checked, within

MAX_BLOCKS = 1000
"""Blocks of a `SimBa`, which makes a list of them."""

InnerPrecision = Literal["auto", "float32", "bfloat16"]
"""The precision in which inner layers are multiplied."""
Activation = Callable[[Tensor], Tensor]
Apply = Callable[[nn.Linear, Tensor], Tensor]
"""Applies a linear layer: `layer(hidden)`, or the same in lower precision."""


def apply(layer: nn.Linear, hidden: Tensor) -> Tensor:
    """As it is."""
    return cast(Tensor, layer(hidden))


class Backbone(ABC):
    """The hidden part of critics and actors. The network owns the first linear layer, of which each input's share is
    computed once however often another input changes, and the last.

    A backbone is a factory of layers and holds no weight: `layers` makes them, and calling it applies them. Inputs are
    what the first layer gives, before any activation, and may be written over.
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


class Layers(nn.Module):
    """The layers of a network: `first`, those of the backbone in `rest`, and `last`.

    Args:
        inputs: of the first layer.
        outputs: of the last layer.
        backbone: the hidden layers; None: `MLP`.
    """

    def __init__(self, inputs: int, outputs: int, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.backbone = backbone or MLP()
        self.first = nn.Linear(inputs, self.backbone.width)
        self.rest = self.backbone.layers()
        self.last = nn.Linear(self.backbone.features, outputs)


class FeedForward(Layers):
    """Inputs [..., i] -> outputs [..., o] through a backbone, with ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.backbone(self.rest, self.first(x), torch.relu_))
        return outputs


def inner_dtype(precision: InnerPrecision, like: Tensor) -> torch.dtype:
    """The type that one of `InnerPrecision` means for tensors such as `like`; only float32 is ever shortened."""
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
