"""Returns of several objectives: those of a policy, the best of them, and the volume that these dominate."""

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from dqs_lightning.evaluation.returns import Policy, episode_returns
from dqs_lightning.objectives import OBJECTIVES


def vector_returns(env: EnvBase, policy: Policy | None, discount: float = 1.0) -> Tensor:
    """Returns of each objective in the first episode of each member of a batched environment, [num_envs, m].

    Args:
        env: of `envs.Objectives`; it is reset first.
        policy: see `episode_returns`.
        discount: gamma of the return, in [0, 1].
    """
    returns = torch.zeros(env.full_reward_spec[OBJECTIVES].shape, device=env.device)
    factor = torch.ones(*env.batch_size, 1, device=env.device)

    def add(stepped: TensorDictBase) -> None:
        following = stepped["next"]
        returns.add_(factor * following[OBJECTIVES])
        factor.mul_(discount * ~following["done"])

    episode_returns(env, policy, on_step=add)
    return returns


def dominated(points: Tensor) -> Tensor:
    """Returns which of the points [n, m] another one dominates, [n]: no less in any objective, more in one."""
    other, point = points.unsqueeze(0), points.unsqueeze(1)
    return ((other >= point).all(-1) & (other > point).any(-1)).any(-1)


def hypervolume(points: Tensor, reference: Sequence[float]) -> float:
    """Returns the area that points [n, 2] dominate above a reference point: of the union of the rectangles between.

    Args:
        points: returns of two objectives, of which more is better. Points that are not above the reference in both
            objectives add nothing.
        reference: the lower corner, two numbers.

    Raises:
        ValueError: for another number of objectives.
    """
    if points.shape[-1] != 2 or len(reference) != 2:
        raise ValueError(f"points have {points.shape[-1]} objectives and reference {len(reference)}: must be 2")
    area, top = 0.0, float(reference[1])
    for x, y in sorted(points.tolist(), reverse=True):
        if x > reference[0] and y > top:
            area += (x - reference[0]) * (y - top)
            top = y
    return area
