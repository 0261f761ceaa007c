"""The clock of a run: environment frames over all ranks, and the updates that are due after them."""

import math
from collections.abc import Callable
from dataclasses import dataclass


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
