"""The keys of transitions, and the interface of what makes batches of them: a replay buffer or the latest rollout."""

from abc import ABC, abstractmethod
from typing import Any

from tensordict import NestedKey, TensorDictBase

from dqs_lightning.collection.clock import Clock

TRANSITION: tuple[NestedKey, ...] = (
    "observation",
    "action",
    *(("next", key) for key in ("observation", "reward", "terminated", "truncated")),
)
"""Keys of the transitions that are collected."""


class Source(ABC):
    """Turns collected blocks of transitions into the batches of the updates that are due.

    Attributes:
        clock: when updates are due.
    """

    clock: Clock

    @abstractmethod
    def batches(self, block: TensorDictBase, due: int) -> list[TensorDictBase]:
        """Returns the batches of `due` updates after a block [E, T] of transitions."""

    def end_episodes(self) -> None:  # noqa: B027  # a rollout has none
        """Forgets the unfinished episodes of earlier blocks, because the next block does not continue them."""

    def snapshot(self) -> dict[str, Any]:
        """Returns what `restore` needs, as plain values."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Continues from `snapshot`."""
