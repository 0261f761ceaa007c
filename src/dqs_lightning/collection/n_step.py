"""Transitions over several steps: r_t + gamma r_t+1 + ... + gamma^(n-1) r_t+n-1, and then the state s_t+n."""

import torch
from tensordict import TensorDictBase
from torchrl.envs.transforms import MultiStepTransform

from dqs_lightning.agents.base import STEPS


class MultiStep:
    """Makes transitions over n steps of blocks [E, T] that follow one another; TorchRL's transform, but resumable.

    Rewards are summed and discounted up to the end of an episode; the state that follows, and whether it was the last,
    are those of the last step summed. Transitions whose n steps are not complete wait in `tail` for the next block. The
    actions of intermediate steps are off-policy without a correction, and have no entropy term in a backup.

    Args:
        n_steps: n; >= 1.
        discount: gamma, in [0, 1].
    """

    def __init__(self, n_steps: int, discount: float) -> None:
        self.n_steps, self.discount = n_steps, discount
        self.tail: TensorDictBase | None = None

    def __call__(self, block: TensorDictBase) -> TensorDictBase | None:
        """Returns the transitions over n steps that a block [E, T] completes; None if there are none."""
        known = block if self.tail is None else torch.cat([self.tail.to(block.device), block], -1)
        self.tail = known[..., -self.n_steps :].clone()
        # A new transform has no state of its own. It does not change its done_keys:
        # "terminated" and "truncated" are to be those of the last step.
        made = MultiStepTransform(self.n_steps, self.discount, done_keys=["done"]).inv(known)
        return None if made is None else made.set(STEPS, made[STEPS].unsqueeze(-1))
