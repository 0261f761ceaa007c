"""Hindsight relabelling: transitions with a goal that their episode reached later (arXiv 1707.01495)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import TensorDictReplayBuffer

from dqs_lightning.envs.goals import Goals
from dqs_lightning.envs.transforms import OBSERVATION, Transform, transform_rewards

if TYPE_CHECKING:
    from dqs_lightning.collection.data import OnlineData

Strategy = Literal["future", "final"]
PLACE = LEFT, TIME = "steps_left", "time_in_block"
"""Keys of the buffer: steps that are left in the episode as far as it is known, and the step within the block."""


class Hindsight:
    """Replaces the goals of a share of sampled transitions, and their reward and termination with them.

    The new goal is one that the same episode achieves after the transition: after a step that is drawn uniformly from
    those from the transition to the episode's end ("future"), or after the last one ("final"). Of an episode that has
    not ended, the steps collected so far are used.

    TorchRL's `HERReplayBuffer` is not used: it requires goals under keys of their own, not in a flat observation; it
    takes the rows between two ends of episodes for one episode, but blocks [E, T] interleave the environments; and it
    does not recompute `terminated`. Here each row of the buffer has its step within its block and the number of steps
    that are left in its episode, from which the places of the steps that follow are computed. They are entries of the
    buffer, so that they are saved with it and remain right when its capacity changes.

    Args:
        goals: of the environment.
        share: of sampled transitions that are relabelled, in (0, 1].
        strategy: "future" or "final".
        shape: environments and steps of a block, [E, T].
        transforms: of rewards, which are applied to recomputed ones too.

    Attributes:
        running: steps so far of each environment's unfinished episode.
    """

    def __init__(
        self, goals: Goals, share: float, strategy: Strategy, shape: tuple[int, int], transforms: Sequence[Transform]
    ) -> None:
        self.goals, self.share, self.strategy = goals, share, strategy
        self.transforms = transforms
        self.envs, self.steps = shape
        self.running = [0] * self.envs

    def extend(self, buffer: TensorDictReplayBuffer, block: TensorDictBase) -> None:
        """Stores a block [E, T], with LEFT and TIME; adds its steps to those left in the episodes that it continues."""
        ended = (block["next", "terminated"] | block["next", "truncated"]).squeeze(-1)
        left = torch.zeros(ended.shape, dtype=torch.int64)
        for step in range(self.steps - 2, -1, -1):
            left[:, step] = torch.where(ended[:, step], 0, left[:, step + 1] + 1)
        time = torch.arange(self.steps).expand(self.envs, -1)
        marked = block.copy().set(LEFT, left.unsqueeze(-1)).set(TIME, time.unsqueeze(-1).clone())
        places = buffer.extend(marked.reshape(-1)).reshape(self.envs, self.steps)
        size, capacity, stored = len(buffer), buffer.storage.max_size, buffer[:][LEFT]
        for env, ends in enumerate(ended):
            ends_at = ends.nonzero().flatten().tolist()
            back = torch.arange(1, self.running[env] + 1)
            distance = back + -(-back // self.steps) * (self.envs - 1) * self.steps
            newer = (self.envs - env) * self.steps  # rows of this block from the first of this environment on
            earlier = (places[env, 0].cpu() - distance[distance + newer <= size]) % capacity
            stored[earlier] += ends_at[0] + 1 if ends_at else self.steps
            now = self.steps - 1 - ends_at[-1] if ends_at else self.running[env] + self.steps
            self.running[env] = min(now, capacity)

    def relabel(self, buffer: TensorDictReplayBuffer, drawn: TensorDictBase) -> TensorDictBase:
        """Returns sampled transitions [n], a share of them with a goal that their episode achieved."""
        rows = (torch.rand(len(drawn)) < self.share).nonzero().flatten()
        if not len(rows):
            return drawn
        rows = rows.to(drawn.device)
        chosen = drawn[rows]
        left, time = chosen[LEFT].squeeze(-1).cpu(), chosen[TIME].squeeze(-1).cpu()
        ahead = left if self.strategy == "final" else (torch.rand(len(rows)) * (left + 1)).long().minimum(left)
        distance = ahead + (time + ahead) // self.steps * (self.envs - 1) * self.steps
        places = (chosen["index"].reshape(-1).cpu() + distance) % buffer.storage.max_size
        goal = buffer[:]["next", "observation"][places.to(drawn.device)][:, self.goals.achieved]
        for key in ("observation", ("next", "observation")):
            drawn[key][rows, self.goals.desired] = goal
        reward, terminated = self.goals.outcome(drawn["next", "observation"][rows][:, self.goals.achieved], goal)
        outcome = transform_rewards(self.transforms, TensorDict({"next": {"reward": reward}}, [len(rows)]))
        drawn["next", "reward"][rows] = outcome["next", "reward"]
        drawn["next", "terminated"][rows] = terminated
        return drawn

    def end_episodes(self) -> None:
        """Forgets the unfinished episodes, which the next block does not continue."""
        self.running = [0] * self.envs


def hindsight_of(data: "OnlineData") -> Hindsight | None:
    """Returns the relabelling that a run's numbers describe; None without one.

    Raises:
        ValueError: when the environment has no goals, or other settings exclude relabelling; the message names them.
    """
    if not data.hindsight:
        return None
    try:
        goals = data.environment.hindsight_goals()
    except ValueError as error:
        raise ValueError(f"hindsight={data.hindsight}: {error}; must be 0") from error
    hindsight = f"with hindsight={data.hindsight}"
    if data.actors > 1:
        raise ValueError(f"actors={data.actors}: must be 1 {hindsight}, which needs the blocks in the order of time")
    if data.n_steps > 1:
        raise ValueError(f"n_steps={data.n_steps}: must be 1 {hindsight}, which replaces the reward of one step")
    if data.environment.action_repeat > 1:
        raise ValueError(
            f"environment.action_repeat={data.environment.action_repeat}: must be 1 {hindsight}, since "
            "the goals achieved between two observations are not known"
        )
    for index, transform in enumerate(data.transforms):
        if OBSERVATION in transform.in_keys:
            raise ValueError(
                f"transforms.{index}={type(transform).__name__}: must be of the reward alone {hindsight}, which reads "
                "the goals in the observation"
            )
    if data.replay_size < data.num_envs * data.steps_per_collect:
        raise ValueError(
            f"replay_size={data.replay_size}: must be >= num_envs * steps_per_collect = "
            f"{data.num_envs * data.steps_per_collect} {hindsight}"
        )
    shape = data.num_envs, data.steps_per_collect
    return Hindsight(goals, data.hindsight, data.hindsight_strategy, shape, data.transforms)
