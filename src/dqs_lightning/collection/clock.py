"""The clock of a run: environment frames over all ranks, and the updates that are due after them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dqs_lightning.agents.base import Rollout

if TYPE_CHECKING:
    from dqs_lightning.collection.data import OnlineData


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


def replay_clock(data: "OnlineData", world_size: int) -> Clock:
    """Returns the clock of an off-policy agent: `updates_per_step` updates for each step of a rank.

    Raises:
        ValueError: when the numbers do not fit together; the message names them.
    """
    steps = data.num_envs * data.steps_per_collect
    clock = Clock(
        steps,
        steps * data.environment.action_repeat * world_size,
        data.total_frames,
        lambda blocks: math.floor(data.updates_per_step * blocks * steps),
        data.init_random_frames,
        data.learning_starts,
    )
    before_update = (clock.waiting_frames // clock.frames_per_block + 1) * data.steps_per_collect
    if data.n_steps > 1 and data.n_steps >= before_update:
        raise ValueError(
            f"n_steps={data.n_steps}: must be < {before_update}, the steps of each environment before the first update"
        )
    if clock.total_updates < 1:
        raise ValueError(
            f"total_frames={data.total_frames}: leaves no update after init_random_frames={data.init_random_frames} "
            f"and learning_starts={data.learning_starts} at updates_per_step={data.updates_per_step}"
        )
    return clock


def rollout_clock(data: "OnlineData", rollout: Rollout, world_size: int) -> Clock:
    """Returns the clock of an on-policy agent: a block is a rollout, followed by `epochs` passes through it.

    Raises:
        ValueError: when the numbers do not fit together; the message names them.
    """
    each = rollout.steps // data.num_envs
    steps = data.num_envs * each
    if steps < rollout.batch_size:
        raise ValueError(
            f"num_envs={data.num_envs}: a rollout of {rollout.steps} steps has {each} for each environment, together "
            f"fewer than batch_size={rollout.batch_size}"
        )
    frames = steps * data.environment.action_repeat * world_size
    updates = rollout.epochs * (steps // rollout.batch_size)
    return Clock(steps, frames, data.total_frames, lambda blocks: blocks * updates)
