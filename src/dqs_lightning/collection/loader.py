"""Batches of a run: a TorchRL collector fills a replay buffer, or rollouts, from which each update's batch is drawn."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_warn
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.checkpoint import GlobalRNGState
from torchrl.collectors import Collector
from torchrl.data import TensorDictReplayBuffer

from dqs_lightning.agents import Agent
from dqs_lightning.agents.base import STEPS
from dqs_lightning.collection.clock import Clock
from dqs_lightning.collection.collectors import Ahead, collector_of
from dqs_lightning.collection.n_step import MultiStep
from dqs_lightning.collection.storage import Storage
from dqs_lightning.envs import EnvironmentFailure
from dqs_lightning.envs.watched import Watched
from dqs_lightning.envs.workers import WorkerBatch
from dqs_lightning.finite import NonFiniteError, check_block, check_replay

if TYPE_CHECKING:
    from dqs_lightning.collection.data import OnlineData

NEXT = ("observation", "reward", "terminated", "truncated")
T = TypeVar("T")
TRANSITION: tuple[NestedKey, ...] = ("observation", "action", *(("next", key) for key in NEXT))


class OnlineLoader:
    """Iterates over the batches of a run. Its length is the number of updates; Lightning's progress counts them.

    The collector and its environments live only while it is iterated.

    Args:
        data: the run's numbers.
        agent: whose policy collects.
        rank: of this process; ranks are seeded apart.
        world_size: number of ranks.
        after_block: called after a block after which no update is due; True ends the iteration.
        any_rank: the largest of a small number >= 0 over all ranks.
    """

    def __init__(
        self,
        data: "OnlineData",
        agent: Agent,
        rank: int = 0,
        world_size: int = 1,
        after_block: Callable[[], bool] = lambda: False,
        any_rank: Callable[[int], int] = lambda value: value,
    ) -> None:
        self.data, self.agent, self.rank = data, agent, rank
        self.after_block, self.any_rank = after_block, any_rank
        self.clock = Clock(data, agent.rollout, world_size)
        steps = self.clock.steps_per_block
        capacity = min(data.replay_size, self.clock.total_frames // self.clock.frames_per_block * steps)
        device = agent.device if data.replay_on_device else "cpu"
        self.replay_buffer = TensorDictReplayBuffer(storage=Storage(capacity, device=device))
        self.multi_step: MultiStep | None = None
        self.keys = TRANSITION
        if data.n_steps > 1 and not agent.rollout:
            self.multi_step = MultiStep(data.n_steps, agent.discount)
            self.keys = (*TRANSITION, STEPS)
        self.last_return: float | None = None
        self._pending: list[TensorDictBase] = []
        self._returns: Tensor | None = None
        self._env: Watched | WorkerBatch | None = None
        self._ahead: Ahead | None = None
        self._restored: dict[str, Any] | None = None

    @property
    def pending(self) -> int:
        """Batches that are drawn and still to come."""
        return len(self._pending)

    @property
    def finished(self) -> bool:
        """Whether all updates of the run have been made."""
        return self.clock.updates >= self.clock.total_updates and not self._pending

    @property
    def policy_age(self) -> int | None:
        """Updates that the policy of the latest block lacked when the block arrived; None where it never lacks any."""
        return self._ahead.age if self._ahead else None

    def __len__(self) -> int:
        return self.clock.total_updates

    def __iter__(self) -> Iterator[TensorDictBase]:
        collector = self._together(self._start)
        try:
            yield from self._drain()
            blocks = iter(collector)
            while not self.finished:
                block = self._together(lambda: self._collect(blocks))
                due = self.clock.advance()
                self._add_returns(block)
                self._pending = self._epochs(block) if self.agent.rollout else self._replayed(block, due)
                if not self._pending and self.after_block():
                    return
                yield from self._drain()
        finally:
            collector.shutdown()
            self._env = self._ahead = None

    def _collect(self, blocks: Iterator[TensorDictBase]) -> TensorDictBase:
        """Return the next block, checked to be finite."""
        block = next(blocks).select(*TRANSITION, ("next", "done"))
        check_block(block, self.clock.frames, self.clock.frames_per_block // block.shape[-1], self.rank)
        return block

    def _together(self, act: Callable[[], T]) -> T:
        """Return what a function gives. Where it fails on one rank all raise, so that none waits for another."""
        failure: EnvironmentFailure | NonFiniteError | None = None
        try:
            result = act()
        except (EnvironmentFailure, NonFiniteError) as error:
            failure = error
        kinds = (EnvironmentFailure, NonFiniteError)
        if kind := self.any_rank(0 if failure is None else 1 + isinstance(failure, NonFiniteError)):
            raise failure or kinds[kind - 1]("another rank has failed and gives the cause")
        return result

    def _drain(self) -> Iterator[TensorDictBase]:
        while self._pending:
            yield self._pending.pop(0)

    def _replayed(self, block: TensorDictBase, due: int) -> list[TensorDictBase]:
        """Store a block; draw the batches that are due, all at once."""
        known = self.multi_step(block) if self.multi_step else block
        if known is not None:
            self.replay_buffer.extend(known.select(*self.keys).reshape(-1))
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

    def _add_returns(self, block: TensorDictBase) -> None:
        """Add the block's rewards to the returns of training episodes."""
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
        saved = None if state is None or state["workers"] != data.workers else state["envs"]
        blocks = self.clock.frames // self.clock.frames_per_block
        first = (seed + (saved is None) * blocks) % 2**31  # new episodes must not be those at the run's start
        env = None if data.asynchronous else data.training_environment(first)
        if state is not None and env is not None and saved is not None:
            env.restore(saved)
            if self.multi_step and state["tail"] is not None:
                self.multi_step.tail = TensorDict.from_dict(state["tail"], auto_batch_size=True, batch_dims=2)
        elif state is not None:
            self._begin_anew()
            rank_zero_warn("The environments cannot be restored in mid-episode: their episodes start anew")
        random_steps = self.clock.random_steps
        collector: Collector | Ahead
        if env is None:
            collector = self._ahead = Ahead(
                data.environment,
                data.num_envs,
                self.agent,
                self.clock.steps_per_block,
                random_steps,
                first,
                lambda: self.clock.updates,
                data.step_timeout_s,
                data.restarts,
                self._begin_anew,
            )
        else:
            collector = collector_of(
                env, self.agent, self.clock.steps_per_block, random_steps, lambda: self.clock.frames
            )
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
            "frames": self.clock.frames,
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
        """
        self.clock.frames = state["frames"]
        if state["replay"] is not None:
            replay = TensorDict.from_dict(state["replay"], auto_batch_size=True, batch_dims=1)
            check_replay(replay)
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
