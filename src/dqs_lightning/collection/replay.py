"""Batches for off-policy agents, from a TorchRL replay buffer."""

import logging
import math
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl import torchrl_logger
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs.transforms import MultiStepTransform

from dqs_lightning.agents.base import STEPS, Agent
from dqs_lightning.collection.hindsight import PLACE, hindsight_of
from dqs_lightning.collection.source import Clock, Source, transition_keys
from dqs_lightning.collection.tasks import Stratified, in_turn
from dqs_lightning.envs import Objectives
from dqs_lightning.finite import check_replay
from dqs_lightning.objectives import OBJECTIVES
from dqs_lightning.registry import components

if TYPE_CHECKING:
    from dqs_lightning.collection.data import OnlineData


class Storage(LazyTensorStorage):  # type: ignore[misc]  # torchrl has no types
    """TorchRL's storage in memory, without the log line that it writes when the first transitions arrive."""

    def _init(self, data: Any) -> None:
        level = torchrl_logger.level
        torchrl_logger.setLevel(max(level, logging.WARNING))
        try:
            super()._init(data)
        finally:
            torchrl_logger.setLevel(level)


class MultiStep:
    """Makes transitions over n steps of blocks [E, T] that follow one another; TorchRL's transform, but resumable.

    They are r_t + gamma r_t+1 + ... + gamma^(n-1) r_t+n-1, and then the state s_t+n.

    Rewards are summed and discounted up to the end of an episode; the state that follows, and whether it was the last,
    are those of the last step summed. Transitions whose n steps are not complete wait for the actor's next block. The
    actions of intermediate steps are off-policy without a correction, and have no entropy term in a backup.

    Args:
        n_steps: n; >= 1.
        discount: gamma, in [0, 1].
    """

    def __init__(self, n_steps: int, discount: float) -> None:
        self.n_steps, self.discount = n_steps, discount
        self.tails: dict[int, TensorDictBase] = {}

    def __call__(self, block: TensorDictBase, actor: int = 0) -> TensorDictBase | None:
        """Returns the transitions over n steps that a block [E, T] of an actor completes; None if there are none."""
        tail = self.tails.get(actor)
        known: TensorDictBase = block if tail is None else torch.cat([tail.to(block.device), block], -1)
        self.tails[actor] = known[..., -self.n_steps :].clone()
        # A new transform has no state of its own. It does not change its done_keys:
        # "terminated" and "truncated" are to be those of the last step.
        rewards = [key for key in ("reward", OBJECTIVES) if ("next", key) in known.keys(True)]
        made = MultiStepTransform(self.n_steps, self.discount, reward_keys=rewards, done_keys=["done"]).inv(known)
        return None if made is None else made.set(STEPS, made[STEPS].unsqueeze(-1))


class Replay(Source):
    """Stores every transition of a rank, and draws batches uniformly from the latest `replay_size` of them.

    Of several tasks, each has the same share of the buffer and of every batch, up to rounding.

    Args:
        data: the run's numbers.
        agent: its discount is that of transitions over several steps; the buffer is on its device where
            `data.replay_on_device` is set, and on the CPU otherwise.
        world_size: number of ranks.
    """

    def __init__(self, data: "OnlineData", agent: Agent, world_size: int) -> None:
        steps = data.num_envs * data.steps_per_collect
        self.clock = clock = Clock(
            steps,
            steps * data.environment.action_repeat * world_size,
            data.total_frames,
            lambda blocks: math.floor(data.updates_per_step * blocks * steps),
            data.init_random_frames,
            data.learning_starts,
        )
        blocks = math.ceil((clock.waiting_frames // clock.frames_per_block + 1) / data.actors)
        before = blocks * data.steps_per_collect  # of the actor that has collected the most
        if data.n_steps > 1 and data.n_steps >= before:
            raise ValueError(
                f"n_steps={data.n_steps}: must be < {before}, the steps of each environment before the first update"
            )
        if clock.total_updates < 1:
            raise ValueError(
                f"total_frames={data.total_frames}: leaves no update after init_random_frames="
                f"{data.init_random_frames} and learning_starts={data.learning_starts} at "
                f"updates_per_step={data.updates_per_step}"
            )
        self.batch_size = data.batch_size
        capacity = min(data.replay_size, clock.total_frames // clock.frames_per_block * steps)
        self.tasks, self.workers = len(data.environment.tasks), data.workers
        if capacity < self.tasks:
            raise ValueError(f"replay_size={data.replay_size}: must be >= {self.tasks}, the number of tasks")
        storage = Storage(capacity // self.tasks * self.tasks, device=agent.device if data.replay_on_device else "cpu")
        sampler = Stratified(self.tasks) if self.tasks > 1 else None
        self.buffer = TensorDictReplayBuffer(storage=storage, sampler=sampler)
        self.multi_step = MultiStep(data.n_steps, agent.discount) if data.n_steps > 1 else None
        self.hindsight = hindsight_of(data)
        if agent.objectives:
            _check_objectives(data, agent)
        keys = transition_keys(agent)
        self.keys = (*keys, STEPS) if self.multi_step else keys
        self.stored = (*self.keys, *PLACE) if self.hindsight else self.keys

    def batches(self, block: TensorDictBase, due: int, actor: int = 0) -> list[TensorDictBase]:
        """Stores a block; draws all batches that are due in one call."""
        known = self.multi_step(block, actor) if self.multi_step else block
        if self.hindsight:
            self.hindsight.extend(self.buffer, block.select(*self.keys))
        elif known is not None:
            self.buffer.extend(in_turn(known.select(*self.keys), self.tasks, self.workers))
        if not due:
            return []
        drawn = self.buffer.sample(due * self.batch_size)
        if self.hindsight:
            drawn = self.hindsight.relabel(self.buffer, drawn)
        return list(drawn.select(*self.keys).reshape(due, self.batch_size).unbind(0))

    def end_episodes(self, actor: int = 0) -> None:
        if self.multi_step:
            self.multi_step.tails.pop(actor, None)
        if self.hindsight:
            self.hindsight.end_episodes()

    def snapshot(self) -> dict[str, Any]:
        tails = self.multi_step.tails if self.multi_step else {}
        return {
            "replay": self.buffer[:].select(*self.stored).contiguous().cpu().to_dict() if len(self.buffer) else None,
            "writer": dict(self.buffer.writer.state_dict()),
            "tails": {str(actor): tail.cpu().to_dict() for actor, tail in tails.items()},
            "running": list(self.hindsight.running) if self.hindsight else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from `snapshot`; a buffer of another capacity holds the same transitions, or the latest of them."""
        if self.multi_step:
            for actor, tail in state["tails"].items():
                self.multi_step.tails[int(actor)] = TensorDict.from_dict(tail, auto_batch_size=True, batch_dims=2)
        if self.hindsight:
            self.hindsight.running = list(state["running"])
        if state["replay"] is None:
            return
        replay = TensorDict.from_dict(state["replay"], auto_batch_size=True, batch_dims=1)
        check_replay(replay)
        capacity, oldest = self.buffer.storage.max_size, state["writer"]["_cursor"] % len(replay)
        if len(replay) == capacity:  # in the saved order, because samples are drawn by index
            self.buffer.extend(replay)
            self.buffer.writer.load_state_dict(state["writer"])
        else:
            self.buffer.extend(torch.cat([replay[oldest:], replay[:oldest]])[-capacity:])


def _check_objectives(data: "OnlineData", agent: Agent) -> None:
    """Raises a ValueError when the environment has no reward vector, or transforms would change parts of it."""
    name = type(agent).__name__
    if not isinstance(data.environment, Objectives):
        known = ", ".join(components(Objectives))
        raise ValueError(f"environment={type(data.environment).__name__}: must be one of {known} for {name}")
    if data.transforms:
        raise ValueError(
            f"transforms.0={type(data.transforms[0]).__name__}: must be left out for {name}, which reads the "
            "weights in the observation and learns from the reward vector"
        )
