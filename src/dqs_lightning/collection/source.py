"""The keys of transitions, what makes batches of them, and that of on-policy agents, from their latest rollout."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from tensordict import NestedKey, TensorDictBase

from dqs_lightning.agents import Agent
from dqs_lightning.agents.base import Rollout
from dqs_lightning.collection.clock import Clock

if TYPE_CHECKING:
    from dqs_lightning.collection.data import OnlineData

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


class Rollouts(Source):
    """Goes `rollout.epochs` times through the latest block, which is the agent's rollout.

    Args:
        data: the run's numbers.
        agent: prepares each block, for example by computing advantages.
        rollout: its sizes.
        world_size: number of ranks.

    Raises:
        ValueError: when the numbers do not fit together; the message names them.
    """

    def __init__(self, data: "OnlineData", agent: Agent, rollout: Rollout, world_size: int) -> None:
        if data.hindsight:
            raise ValueError(
                f"hindsight={data.hindsight}: must be 0 for {type(agent).__name__}, which is on-policy: other goals "
                "would have led to other actions"
            )
        each = rollout.steps // data.num_envs
        steps = data.num_envs * each
        if steps < rollout.batch_size:
            raise ValueError(
                f"num_envs={data.num_envs}: a rollout of {rollout.steps} steps has {each} for each environment, "
                f"together fewer than batch_size={rollout.batch_size}"
            )
        frames = steps * data.environment.action_repeat * world_size
        updates = rollout.epochs * (steps // rollout.batch_size)
        self.clock = Clock(steps, frames, data.total_frames, lambda blocks: blocks * updates)
        self.agent, self.rollout = agent, rollout

    def batches(self, block: TensorDictBase, due: int) -> list[TensorDictBase]:
        """Returns each epoch's batches in a random order; transitions that do not fill a batch are left out."""
        rows = self.agent.prepare(block).reshape(-1)
        size = self.rollout.batch_size
        orders = (torch.randperm(len(rows)) for _ in range(self.rollout.epochs))
        return [rows[order[i * size : (i + 1) * size]] for order in orders for i in range(len(rows) // size)]
