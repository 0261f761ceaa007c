"""Rewards of several objectives: their key in a transition, and weights on the simplex."""

import torch
from torch import Tensor

OBJECTIVES = "objectives"
"""Key of the reward vector [..., m], beside the reward in the `next` entry of a transition."""


def uniform_weights(uniform: Tensor) -> Tensor:
    """Returns weights [..., m], uniform on the simplex: each >= 0, with the sum 1.

    They are the gaps between sorted uniform numbers, which have the distribution Dirichlet(1, ..., 1).

    Args:
        uniform: independent uniform draws [..., m - 1] in [0, 1).
    """
    ends = uniform.new_zeros(*uniform.shape[:-1], 1)
    return torch.cat([ends, uniform.sort(-1).values, ends + 1], -1).diff(dim=-1)
