"""Counts the replaced processes of a run, and limits them."""

import warnings

from dqs_lightning.envs.base import EnvironmentFailure

RESTARTS = 3
"""Processes that are replaced in a run; the next failure ends it."""
SEED_STRIDE = 1_000_003
"""Between the seeds of a process and of the one that replaces it."""
START_LIMIT_S = 300.0
"""For constructing environments and their first reset."""


class Restarts:
    """Counts the replaced processes of a run, and refuses the one after RESTARTS.

    Attributes:
        used: processes that were replaced so far.
        lost_episodes: episodes that ended because of it.
    """

    def __init__(self) -> None:
        self.used = 0
        self.lost_episodes = 0

    def spend(self, who: str, cause: str, episodes: int) -> int:
        """Counts one more, with a warning, or raises an EnvironmentFailure; returns what is added to the seeds."""
        if self.used >= RESTARTS:
            raise EnvironmentFailure(f"{who} failed: {cause}; {RESTARTS} processes have been replaced before")
        self.used += 1
        self.lost_episodes += episodes
        warnings.warn(
            f"{who} failed: {cause}; replaced ({self.used} of at most {RESTARTS}), {episodes} episodes are lost",
            stacklevel=2,
        )
        return self.used * SEED_STRIDE
