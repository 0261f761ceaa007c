"""Returns of the training episodes, from blocks of transitions."""

import torch
from tensordict import TensorDictBase
from torch import Tensor


class EpisodeReturns:
    """Sums rewards until an episode ends.

    Attributes:
        running: return so far of each environment's episode, [E, 1]; None: every episode begins.
        last: mean return of the episodes that ended in the latest block in which one ended; None before the first.
    """

    def __init__(self) -> None:
        self.running: Tensor | None = None
        self.last: float | None = None

    def add(self, block: TensorDictBase) -> None:
        """Adds the rewards of a block [E, T]."""
        reward, done = block["next", "reward"], block["next", "done"]
        running = torch.zeros_like(reward.select(-2, 0)) if self.running is None else self.running.to(reward)
        finished = []
        for step in range(reward.shape[-2]):
            running = running + reward.select(-2, step)
            ended = done.select(-2, step)
            finished.append(running[ended])
            running = running.masked_fill(ended, 0)
        self.running = running
        if (returns := torch.cat(finished)).numel():
            self.last = float(returns.mean())
