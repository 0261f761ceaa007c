"""Which dimensions of the action exist, for tasks of different dimensions in one batch."""

from collections.abc import Sequence

import torch
from torch import Tensor


class ActionMask:
    """Reads the task of each observation, and returns which dimensions its action has.

    The one-hot of the task is the last numbers of an observation (`MultiTask`), which must not be normalised. It has no
    tensors, so that it can be called within a compiled function, a CUDA graph and a vmap.

    Args:
        action_dims: dimension of the action of each task; the first ones exist. The largest is d.
        after: numbers of the input that follow the one-hot; >= 0.
    """

    def __init__(self, action_dims: Sequence[int], after: int = 0) -> None:
        self.action_dims, self.after = tuple(action_dims), after

    def __call__(self, observation: Tensor) -> Tensor:
        """Observations [..., o] -> [..., d], boolean."""
        end = observation.shape[-1] - self.after
        one_hot = observation[..., end - len(self.action_dims) : end].unbind(-1)
        exists = sum(task * size for task, size in zip(one_hot, self.action_dims, strict=True))
        assert isinstance(exists, Tensor)
        return torch.arange(max(self.action_dims), device=observation.device) < exists.unsqueeze(-1) - 0.5


def action_mask(action_dims: Sequence[int] | None, action_dim: int) -> ActionMask | None:
    """Returns the mask of tasks with these dimensions; None where all have the same, or there is one task.

    Raises:
        ValueError: when `action_dim` is not the largest of them, or one is below 1.
    """
    if action_dims is None:
        return None
    if not action_dims or min(action_dims) < 1 or max(action_dims) != action_dim:
        raise ValueError(f"action_dims={list(action_dims)}: must be >= 1, the largest action_dim={action_dim}")
    return ActionMask(action_dims) if len(set(action_dims)) > 1 else None
