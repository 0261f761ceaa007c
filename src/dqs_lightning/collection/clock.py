"""The clock of a run: environment frames over all ranks, and the updates that are due after them."""

import math
from typing import TYPE_CHECKING

from dqs_lightning.agents.base import Rollout

if TYPE_CHECKING:
    from dqs_lightning.collection.data import OnlineData


class Clock:
    """Counts frames in blocks, the transitions that are collected between two visits to the buffer.

    Args:
        data: the run's numbers.
        rollout: of an on-policy agent; None: the agent learns from a replay buffer.
        world_size: ranks, each of which collects a block of its own at the same time.

    Raises:
        ValueError: when the numbers do not fit together; the message names them.

    Attributes:
        frames: environment frames collected so far, over all ranks.
        steps_per_block: agent steps of one rank in a block, over all of its environments.
        frames_per_block: environment frames of all ranks in a block.
        total_updates: gradient updates of the whole run.
    """

    def __init__(self, data: "OnlineData", rollout: Rollout | None, world_size: int) -> None:
        self.rollout: Rollout | None = rollout
        self.updates_per_step: float = data.updates_per_step
        each = rollout.steps // data.num_envs if rollout else data.steps_per_collect
        self.steps_per_block = data.num_envs * each
        if rollout and self.steps_per_block < rollout.batch_size:
            raise ValueError(
                f"num_envs={data.num_envs}: a rollout of {rollout.steps} steps gives each environment {each}, together "
                f"fewer than the {rollout.batch_size} of a batch"
            )
        if rollout and data.asynchronous:
            raise ValueError("asynchronous=True: must be False for an on-policy agent, which learns from its own data")
        self.frames_per_block = self.steps_per_block * data.environment.action_repeat * world_size
        self.random_frames = 0 if rollout else self._whole_blocks(data.init_random_frames)
        self.waiting_frames = max(self.random_frames, self._whole_blocks(data.learning_starts))
        self.total_frames = self._whole_blocks(data.total_frames)
        self.frames = 0
        self.total_updates = self._updates_after(self.total_frames)
        before_update = (self.waiting_frames // self.frames_per_block + 1) * each
        if not rollout and data.n_steps > 1 and data.n_steps >= before_update:
            raise ValueError(
                f"n_steps={data.n_steps}: must be < {before_update}, the steps of each environment before the first "
                "update"
            )
        if self.total_updates < 1:
            raise ValueError(
                f"total_frames={data.total_frames}: leaves no update after init_random_frames="
                f"{data.init_random_frames} and learning_starts={data.learning_starts} at "
                f"updates_per_step={data.updates_per_step}"
            )

    def _whole_blocks(self, frames: int) -> int:
        """The frames of the fewest blocks that have so many."""
        return math.ceil(frames / self.frames_per_block) * self.frames_per_block

    def _updates_after(self, frames: int) -> int:
        blocks = (frames if self.rollout else max(0, frames - self.waiting_frames)) // self.frames_per_block
        if self.rollout:
            return blocks * self.rollout.epochs * (self.steps_per_block // self.rollout.batch_size)
        return math.floor(self.updates_per_step * blocks * self.steps_per_block)

    @property
    def updates(self) -> int:
        """Updates that are due after the frames so far."""
        return self._updates_after(self.frames)

    @property
    def random_steps(self) -> int:
        """Steps of one rank, over all its environments, whose actions are still to be uniformly random."""
        return max(0, self.random_frames - self.frames) // self.frames_per_block * self.steps_per_block

    def advance(self) -> int:
        """Count a block; returns how many updates are due because of it."""
        before = self.updates
        self.frames += self.frames_per_block
        return self.updates - before
