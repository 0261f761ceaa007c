"""Batches of a run: a TorchRL collector fills a replay buffer, or rollouts, from which each update's batch is drawn."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.checkpoint import GlobalRNGState
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from dqs_lightning.agents import Agent
from dqs_lightning.collecting import Ahead, collector_of
from dqs_lightning.envs.watched import Watched
from dqs_lightning.envs.workers import WorkerBatch
from dqs_lightning.multistep import STEPS, MultiStep

if TYPE_CHECKING:
    from dqs_lightning.data import OnlineData

NEXT = ("observation", "reward", "terminated", "truncated")
TRANSITION: tuple[NestedKey, ...] = ("observation", "action", *(("next", key) for key in NEXT))


class OnlineLoader:
    """Iterates over the batches of a run. Its length is the number of updates; Lightning's progress counts them.

    The collector and its environments live only while it is iterated.
    """

    def __init__(self, data: "OnlineData", agent: Agent, rank: int, world_size: int) -> None:
        self.data, self.agent, self.rank = data, agent, rank
        each = agent.rollout.steps // data.num_envs if agent.rollout else data.steps_per_collect
        self.steps_per_block = steps = data.num_envs * each
        self.frames_per_block = steps * data.environment.action_repeat * world_size
        self.num_blocks = math.ceil(data.total_frames / self.frames_per_block)
        self.random_blocks = 0 if agent.rollout else math.ceil(data.init_random_frames / self.frames_per_block)
        self.waiting_blocks = max(self.random_blocks, math.ceil(data.learning_starts / self.frames_per_block))
        capacity = min(data.replay_size, self.num_blocks * steps)
        device = agent.device if data.replay_on_device else "cpu"
        self.replay_buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(capacity, device=device))
        self.multi_step: MultiStep | None = None
        self.keys = TRANSITION
        if data.n_steps > 1 and not agent.rollout:
            self.multi_step = MultiStep(data.n_steps, agent.discount)
            self.keys = (*TRANSITION, STEPS)
        self.blocks = 0
        self.last_return: float | None = None
        self._pending: list[TensorDictBase] = []
        self._returns: Tensor | None = None
        self._env: Watched | WorkerBatch | None = None
        self._ahead: Ahead | None = None
        self._restored: dict[str, Any] | None = None
        if agent.rollout and steps < agent.rollout.batch_size:
            raise ValueError(
                f"num_envs={data.num_envs}: a rollout of {agent.rollout.steps} steps gives each {each}, together fewer "
                f"than the {agent.rollout.batch_size} of a batch"
            )
        if agent.rollout and data.asynchronous:
            raise ValueError(
                f"asynchronous=True: {type(agent).__name__} learns from its own latest rollouts alone; allowed is False"
            )
        before_update = (self.waiting_blocks + 1) * each
        if self.multi_step and data.n_steps >= before_update:
            raise ValueError(
                f"n_steps={data.n_steps}: allowed is below {before_update}, the steps of each "
                "environment before the first update"
            )
        if len(self) < 1:
            raise ValueError(
                f"total_frames={data.total_frames}: leaves no update after init_random_frames="
                f"{data.init_random_frames} and learning_starts={data.learning_starts} at "
                f"updates_per_step={data.updates_per_step}"
            )

    @property
    def env_frames(self) -> int:
        return self.blocks * self.frames_per_block

    @property
    def pending(self) -> int:
        """Batches that are drawn and still to come."""
        return len(self._pending)

    @property
    def policy_age(self) -> int | None:
        """Updates that the policy of the latest block lacked when the block arrived; None where it never lacks any."""
        return self._ahead.age if self._ahead else None

    def _updates_after(self, blocks: int) -> int:
        """Updates that are due once `blocks` blocks are collected."""
        if rollout := self.agent.rollout:
            return blocks * rollout.epochs * (self.steps_per_block // rollout.batch_size)
        return math.floor(self.data.updates_per_step * max(0, blocks - self.waiting_blocks) * self.steps_per_block)

    def __len__(self) -> int:
        return self._updates_after(self.num_blocks)

    def __iter__(self) -> Iterator[TensorDictBase]:
        collector = self._start()
        try:
            yield from self._drain()
            blocks = iter(collector)
            while self.blocks < self.num_blocks:
                block = next(blocks).select(*TRANSITION, ("next", "done"))
                self._count(block)
                self._pending = self._epochs(block) if self.agent.rollout else self._replayed(block)
                yield from self._drain()
        finally:
            collector.shutdown()
            self._env = self._ahead = None

    def _drain(self) -> Iterator[TensorDictBase]:
        while self._pending:
            yield self._pending.pop(0)

    def _replayed(self, block: TensorDictBase) -> list[TensorDictBase]:
        """Store a block; draw the batches that are due, all at once."""
        known = self.multi_step(block) if self.multi_step else block
        if known is not None:
            self.replay_buffer.extend(known.select(*self.keys).reshape(-1))
        due = self._updates_after(self.blocks) - self._updates_after(self.blocks - 1)
        if not due:
            return []
        drawn = self.replay_buffer.sample(due * self.data.batch_size).select(*self.keys)
        return list(drawn.reshape(due, self.data.batch_size).unbind(0))

    def _epochs(self, block: TensorDictBase) -> list[TensorDictBase]:
        """The rollout's batches, each epoch in an order of its own; what does not fill a batch is left out of it."""
        rollout = self.agent.rollout
        assert rollout is not None
        rows = self.agent.prepare(block).reshape(-1)
        size = rollout.batch_size
        orders = (torch.randperm(len(rows)) for _ in range(rollout.epochs))
        return [rows[order[i * size : (i + 1) * size]] for order in orders for i in range(len(rows) // size)]

    def _count(self, block: TensorDictBase) -> None:
        """Take the block into the clock and into the returns of training episodes."""
        self.blocks += 1
        reward, done = block["next", "reward"], block["next", "done"]
        if self._returns is None:
            self._returns = torch.zeros_like(reward.select(-2, 0))
        finished = []
        for step in range(reward.shape[-2]):
            self._returns = self._returns + reward.select(-2, step)
            ended = done.select(-2, step)
            finished.append(self._returns[ended])
            self._returns = self._returns.masked_fill(ended, 0)
        if (returns := torch.cat(finished)).numel():
            self.last_return = float(returns.mean())

    def _start(self) -> Collector | Ahead:
        """Build environments and collector. Ranks are seeded apart, so that they explore differently."""
        data, state = self.data, self._restored
        seed = (torch.initial_seed() + 10_007 * self.rank) % 2**31
        torch.manual_seed(seed)
        saved = None if state is None or state.get("workers", 0) != data.workers else state["envs"]
        first = (seed + (saved is None) * self.blocks) % 2**31  # new episodes must not be those at the run's start
        env = None if data.asynchronous else data.training_environment(first)
        if state is not None and env is not None and saved is not None:
            env.restore(saved)
            if self.multi_step and state["tail"] is not None:
                self.multi_step.tail = TensorDict.from_dict(state["tail"], auto_batch_size=True, batch_dims=2)
        elif state is not None:
            self._begin_anew()
            rank_zero_warn("The environments cannot be restored in mid-episode: their episodes start anew")
        random_steps = max(0, self.random_blocks - self.blocks) * self.steps_per_block
        collector: Collector | Ahead
        if env is None:
            collector = self._ahead = Ahead(
                data.environment,
                data.num_envs,
                self.agent,
                self.steps_per_block,
                random_steps,
                first,
                lambda: self._updates_after(self.blocks),
                data.step_timeout_s,
                data.restarts,
                self._begin_anew,
            )
        else:
            collector = collector_of(env, self.agent, self.steps_per_block, random_steps)
            self._env = env
        if state is not None:
            GlobalRNGState().load_state_dict(state["random"])
            self._restored = None
        return collector

    def _begin_anew(self) -> None:
        """Forget the episodes that do not go on."""
        self._returns = None
        if self.multi_step:
            self.multi_step.tail = None

    def snapshot(self) -> dict[str, Any]:
        """See `OnlineData.rank_state`."""
        replay = self.replay_buffer[:].select(*self.keys).contiguous() if len(self.replay_buffer) else None
        return {
            "blocks": self.blocks,
            "n_steps": self.data.n_steps,
            "replay": None if replay is None else replay.cpu().to_dict(),
            "writer": dict(self.replay_buffer.writer.state_dict()),
            "pending": [batch.cpu().to_dict() for batch in self._pending],
            "tail": self.multi_step.tail.to_dict() if self.multi_step and self.multi_step.tail is not None else None,
            "returns": self._returns,
            "last_return": self.last_return,
            "envs": None if self._env is None else self._env.snapshot(),
            "workers": self.data.workers,
            "random": GlobalRNGState().state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a snapshot; the environments and the random state follow when iteration starts.

        A buffer that has grown or shrunk holds the same transitions, or the latest of them.

        Raises:
            ValueError: when its transitions are over another number of steps.
        """
        if (kept := state.get("n_steps", 1)) != self.data.n_steps:
            raise ValueError(f"n_steps={self.data.n_steps}: allowed is {kept}, as in the run that is continued")
        self.blocks = state["blocks"]
        if state["replay"] is not None:
            replay = TensorDict.from_dict(state["replay"], auto_batch_size=True, batch_dims=1)
            capacity, oldest = self.replay_buffer.storage.max_size, state["writer"]["_cursor"] % len(replay)
            if len(replay) == capacity:  # as it lay: samples are drawn by place
                self.replay_buffer.extend(replay)
                self.replay_buffer.writer.load_state_dict(state["writer"])
            else:
                self.replay_buffer.extend(torch.cat([replay[oldest:], replay[:oldest]])[-capacity:])
        self._pending = [TensorDict.from_dict(batch, auto_batch_size=True, batch_dims=1) for batch in state["pending"]]
        self._returns, self.last_return = state["returns"], state["last_return"]
        self._restored = state

    def state_dict(self) -> dict[str, Any]:
        """Empty: `OnlineData.rank_state` holds it all, for each rank. Tells Lightning that iteration resumes."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `state_dict`."""
