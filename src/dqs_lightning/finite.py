"""The numbers that a run refuses, and checks of transitions before they are used."""

import math
from collections.abc import Iterable

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from dqs_lightning.objectives import OBJECTIVES

MAX_MAGNITUDE = math.sqrt(torch.finfo(torch.float32).max)
"""1.8e19. The square of a larger number is infinite in float32, and with it losses, norms and Adam's second moment."""

ALLOWED = f"must be at most {MAX_MAGNITUDE:.2g} in magnitude"

SOURCES: dict[NestedKey, str] = {
    "observation": "observation",
    "action": "action",
    ("next", "reward"): "reward",
    ("next", OBJECTIVES): "objectives",
    ("next", "observation"): "next observation",
}
"""Entries of a transition that are checked where it has them, in the order in which they arise, with their names."""


class NonFiniteError(RuntimeError):
    """A number is NaN, infinite or larger than `MAX_MAGNITUDE`; the message names its source and the step."""


def magnitude(value: Tensor) -> Tensor:
    """Returns the largest absolute value as a detached scalar, NaN if there is one. No device-to-host sync."""
    return value.detach().abs().amax()


def refused(value: Tensor) -> Tensor:
    """Returns where a tensor is NaN, infinite or larger than `MAX_MAGNITUDE`, of its shape."""
    return ~(value.detach().abs() <= MAX_MAGNITUDE)


def first_refused(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """Returns "NAME is VALUE" of the first tensor with a refused number, or None. One device-to-host sync for each."""
    for name, value in named:
        if value.is_floating_point() and (bad := value.detach()[refused(value)]).numel():
            return f"{name} is {bad[0].item():.4g}"
    return None


def check_step(source: str, values: Tensor, when: str = "", where: str = "") -> None:
    """Raises a NonFiniteError that names the first environment with a refused number in one step's values [..., n]."""
    rows = values.flatten(0, -2)
    if places := refused(rows).nonzero().tolist():
        env, component = places[0]
        name = f"{source}[{component}]" if rows.shape[-1] > 1 else source
        found = f"{name} of environment {env} is {rows[env, component].item():.4g}"
        raise NonFiniteError(f"{when}{found}{where}; {ALLOWED}. The last checkpoint is kept")


def check_block(block: TensorDictBase, frames: int, frames_per_step: int, rank: int = 0) -> None:
    """Checks transitions on the CPU as they were collected.

    Args:
        block: [..., T] with the keys of `SOURCES`, the last dimension in time's order.
        frames: environment frames before the block.
        frames_per_step: environment frames of one step of all environments, over all ranks.
        rank: of the process that collected it.

    Raises:
        NonFiniteError: naming the first refused number in time: its source, environment, step and frame.
    """
    sources = _sources(block)
    if torch.stack(torch._foreach_norm([block[key] for key in sources], math.inf)).amax() <= MAX_MAGNITUDE:
        return
    steps = block.shape[-1]
    for step in range(steps):
        when = f"frame {frames + (step + 1) * frames_per_step:,}{f', rank {rank}' if rank else ''}: "
        where = f", at step {step + 1} of {steps} in the block, of which none is used"
        for key, source in sources.items():
            check_step(source, block[key][..., step, :], when, where)


def _sources(transitions: TensorDictBase) -> dict[NestedKey, str]:
    present = set(transitions.keys(True, True))
    return {key: name for key, name in SOURCES.items() if key in present}


def check_replay(replay: TensorDictBase) -> None:
    """Raises a NonFiniteError that names the source of the first refused number in a checkpoint's transitions [N]."""
    if found := first_refused((f"{name} in the replay buffer", replay[key]) for key, name in _sources(replay).items()):
        raise NonFiniteError(f"{found}, so this checkpoint cannot be continued; {ALLOWED}")
