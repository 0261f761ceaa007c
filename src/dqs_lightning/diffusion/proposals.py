"""A mixture of proposals with its exact density, from which candidates are drawn and by which they are weighted."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dqs_lightning.diffusion.support import Support

LOG_2PI = math.log(2 * math.pi)


class Component(NamedTuple):
    """Normals with centers [C, B, d] and standard deviation `width` [C, B, 1], truncated to the support.

    `num` candidates are drawn around each center; C is free.
    """

    center: Tensor
    width: Tensor
    num: int


class Mixture:
    """Draws a fixed number of candidates from each component; their density is that of the whole mixture.

    Args:
        support: on whose latent the candidates are.
        components: those with num = 0 are ignored.
        uniform: candidates that are uniform over the action set, which come first; >= 0.
    """

    def __init__(self, support: Support, components: Sequence[Component], uniform: int = 0) -> None:
        self.support, self.uniform = support, uniform
        self.components = [component for component in components if component.num]

    def draw(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Returns all N candidates as latents [N, B, d], for the rows of `like` [B, d]; normals in mirrored pairs."""
        drawn = [self.support.draw(c.center, c.width, c.num, generator).flatten(0, -3) for c in self.components]
        if not self.uniform:
            return torch.cat(drawn)
        return torch.cat([self.support.from_action(self.support.cover(self.uniform, like, generator)), *drawn])

    def log_density(self, x: Tensor) -> Tensor:
        """Returns log q(x) + (d / 2) log(2 pi) for all candidates x [N, B, d]: [N, B].

        The constant of the normals is left out because weights do not depend on it.
        """
        each = x.unsqueeze(1)
        parts = [
            math.log(c.num / len(x)) + self.support.proposal_log_prob(each, c.center, c.width) for c in self.components
        ]
        if self.uniform:
            dim = x.shape[-1]
            volume = self.support.log_volume(dim) - self.support.dims(dim) / 2 * LOG_2PI
            constant = math.log(self.uniform / len(x)) - volume
            parts.append((self.support.log_jacobian(x) + constant).unsqueeze(1))
        return torch.cat(parts, 1).logsumexp(1)
