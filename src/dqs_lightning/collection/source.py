"""Sources of batches: what they have in common, the clock of a run, and that of on-policy agents."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tensordict import NestedKey, TensorDictBase

from dqs_lightning.agents import Agent
from dqs_lightning.objectives import OBJECTIVES

if TYPE_CHECKING:
    from dqs_lightning.collection.data import OnlineData

TRANSITION: tuple[NestedKey, ...] = (
    "observation",
    "action",
    *(("next", key) for key in ("observation", "reward", "terminated", "truncated")),
)
"""Keys of the transitions that are collected."""


def transition_keys(agent: Agent) -> tuple[NestedKey, ...]:
    """Returns the keys of the transitions that an agent learns from."""
    return (*TRANSITION, ("next", OBJECTIVES)) if agent.objectives else TRANSITION


@dataclass
class Clock:
    """Counts frames in blocks, the transitions that all ranks collect between two rounds of updates.

    Frame counts are rounded up to whole blocks.

    Args:
        steps_per_block: agent steps of one rank in a block, over all of its environments.
        frames_per_block: environment frames of all ranks in a block.
        total_frames: length of the run.
        updates_of: number of gradient updates for a number of blocks.
        random_frames: first frames, whose actions are uniformly random.
        waiting_frames: first frames, after which no update is due.

    Attributes:
        frames: environment frames collected so far, over all ranks.
        total_updates: gradient updates of the whole run.
    """

    steps_per_block: int
    frames_per_block: int
    total_frames: int
    updates_of: Callable[[int], int]
    random_frames: int = 0
    waiting_frames: int = 0

    def __post_init__(self) -> None:
        self.total_frames = self._whole_blocks(self.total_frames)
        self.random_frames = self._whole_blocks(self.random_frames)
        self.waiting_frames = max(self.random_frames, self._whole_blocks(self.waiting_frames))
        self.frames = 0
        self.total_updates = self._updates_after(self.total_frames)

    def _whole_blocks(self, frames: int) -> int:
        return math.ceil(frames / self.frames_per_block) * self.frames_per_block

    def _updates_after(self, frames: int) -> int:
        return self.updates_of(max(0, frames - self.waiting_frames) // self.frames_per_block)

    @property
    def updates(self) -> int:
        """Updates that are due after the frames so far."""
        return self._updates_after(self.frames)

    @property
    def random_steps(self) -> int:
        """Steps of one rank, over all its environments, whose actions are still to be uniformly random."""
        return max(0, self.random_frames - self.frames) // self.frames_per_block * self.steps_per_block

    def advance(self) -> int:
        """Counts a block; returns how many updates are due because of it."""
        before = self.updates
        self.frames += self.frames_per_block
        return self.updates - before


class Source(ABC):
    """Turns collected blocks of transitions into the batches of the updates that are due.

    Attributes:
        clock: when updates are due.
    """

    clock: Clock

    @abstractmethod
    def batches(self, block: TensorDictBase, due: int, actor: int = 0) -> list[TensorDictBase]:
        """Returns the batches of `due` updates after a block [E, T], which continues the earlier ones of `actor`."""

    def end_episodes(self, actor: int = 0) -> None:  # noqa: B027  # a rollout has none
        """Forgets the unfinished episodes of an actor's blocks, because its next block does not continue them."""

    def snapshot(self) -> dict[str, Any]:
        """Returns what `restore` needs, as plain values."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Continues from `snapshot`."""


class Rollouts(Source):
    """Goes `rollout.epochs` times through the latest block, which is the agent's rollout.

    Args:
        data: the run's numbers.
        agent: gives the sizes of rollouts, and prepares each block, for example by computing advantages.
        world_size: number of ranks.
    """

    def __init__(self, data: "OnlineData", agent: Agent, world_size: int) -> None:
        rollout = agent.rollout
        assert rollout is not None
        if data.collector == "Ray":
            raise ValueError(
                f"collector=Ray: must be Local for {type(agent).__name__}, which is on-policy: the weights of actors "
                "are some updates old"
            )
        if len(data.environment.tasks) > 1:
            raise ValueError(
                f"environment={type(data.environment).__name__}: must be one task for {type(agent).__name__}, whose "
                "rollouts are not balanced over tasks"
            )
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

    def batches(self, block: TensorDictBase, due: int, actor: int = 0) -> list[TensorDictBase]:
        """Returns each epoch's batches in a random order; transitions that do not fill a batch are left out."""
        rows = self.agent.prepare(block).reshape(-1)
        size = self.rollout.batch_size
        orders = (torch.randperm(len(rows)) for _ in range(self.rollout.epochs))
        return [rows[order[i * size : (i + 1) * size]] for order in orders for i in range(len(rows) // size)]
