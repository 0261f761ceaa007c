"""Iterates over the batches of a run: a TorchRL collector fills a source, from which each update's batch is drawn."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.checkpoint import GlobalRNGState
from torchrl.collectors import Collector

from dqs_lightning.agents import Agent
from dqs_lightning.collection.behaviour import collector_of
from dqs_lightning.collection.source import Source, transition_keys
from dqs_lightning.envs import EnvironmentFailure
from dqs_lightning.envs.transforms import transform_rewards
from dqs_lightning.envs.watched import Watched
from dqs_lightning.envs.workers import WorkerBatch
from dqs_lightning.finite import NonFiniteError, check_block
from dqs_lightning.stop_signal import StopInterrupt

if TYPE_CHECKING:
    from dqs_lightning.collection.data import OnlineData

T = TypeVar("T")
FAILURES = (EnvironmentFailure, NonFiniteError, StopInterrupt)
"""Exceptions that end the collection of all ranks."""


class CollectionHook:
    """Mixin of callbacks that are called while transitions are collected."""

    def on_block_collected(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called after a block of transitions after which no update is due, as in the warm-up.

        All ranks call it at the same blocks. Where `trainer.should_stop` is set afterwards, collection ends.
        """


class Blocks(Protocol):
    """Where the blocks of a run come from."""

    def next(self) -> tuple[TensorDictBase, int]:
        """Returns a block [E, T], and the index of the actor that collected it."""

    def shutdown(self) -> None:
        """Ends the collection and its environments."""


class LocalBlocks:
    """Blocks of TorchRL's collector in this process, whose index is 0."""

    def __init__(self, collector: Collector) -> None:
        self._collector, self._blocks = collector, iter(collector)

    def next(self) -> tuple[TensorDictBase, int]:
        return next(self._blocks), 0

    def shutdown(self) -> None:
        self._collector.shutdown()


class EpisodeReturns:
    """Sums rewards until an episode ends.

    Attributes:
        running: return so far of each environment's episode, [E, 1], for each actor; without: its episodes begin.
        last: mean return of the episodes that ended in the latest block in which one ended; None before the first.
    """

    def __init__(self) -> None:
        self.running: dict[int, Tensor] = {}
        self.last: float | None = None

    def add(self, block: TensorDictBase, actor: int) -> None:
        """Adds the rewards of a block [E, T]."""
        reward, done = block["next", "reward"], block["next", "done"]
        running = self.running.get(actor, torch.zeros_like(reward.select(-2, 0))).to(reward)
        finished = []
        for step in range(reward.shape[-2]):
            running = running + reward.select(-2, step)
            ended = done.select(-2, step)
            finished.append(running[ended])
            running = running.masked_fill(ended, 0)
        self.running[actor] = running
        if (returns := torch.cat(finished)).numel():
            self.last = float(returns.mean())


class OnlineLoader:
    """Iterates over the batches of a run. Its length is the number of updates; Lightning's progress counts them.

    The collector and its environments exist only while it is iterated.

    Args:
        data: makes the environments.
        agent: the behaviour policy.
        source: turns blocks of transitions into batches.
        rank: of this process; ranks have different seeds.
    """

    def __init__(self, data: "OnlineData", agent: Agent, source: Source, rank: int = 0) -> None:
        self.data, self.agent, self.source, self.rank = data, agent, source, rank
        self.clock, self.returns = source.clock, EpisodeReturns()
        self.pending: list[TensorDictBase] = []
        """Batches that are drawn and not yet returned."""
        self.blocks: Blocks | None = None
        self._env: Watched | WorkerBatch | None = None
        self._restored: dict[str, Any] | None = None

    @property
    def finished(self) -> bool:
        """Whether all updates of the run have been made."""
        return self.clock.updates >= self.clock.total_updates and not self.pending

    def __len__(self) -> int:
        return self.clock.total_updates

    def __iter__(self) -> Iterator[TensorDictBase]:
        self.blocks = blocks = self._together(self._start)
        try:
            yield from self._drain()
            while not self.finished:
                try:
                    block, actor = self._together(lambda: self._collect(blocks))
                except StopInterrupt:
                    if self.data.trainer is not None:
                        self.data.trainer.should_stop = True
                    return
                due = self.clock.advance()
                self.agent.env_frames = self.clock.frames
                self.returns.add(block, actor)
                self.pending = self.source.batches(transform_rewards(self.data.transforms, block), due, actor)
                if not self.pending and self._after_block():
                    return
                yield from self._drain()
        finally:
            blocks.shutdown()
            self._env = self.blocks = None

    def _collect(self, blocks: Blocks) -> tuple[TensorDictBase, int]:
        """Returns the next block, checked to be finite, and the index of its actor."""
        found, actor = blocks.next()
        block = found.select(*transition_keys(self.agent), ("next", "done"))
        check_block(block, self.clock.frames, self.clock.frames_per_block // block.shape[-1], self.rank)
        return block, actor

    def end_episodes(self, actor: int) -> None:
        """Forgets the unfinished episodes of an actor, because its next block does not continue them."""
        self.returns.running.pop(actor, None)
        self.source.end_episodes(actor)

    def _together(self, act: Callable[[], T]) -> T:
        """Returns the result of a function. Where it fails on one rank all raise, so that none waits for another."""
        failure, kind = None, 0
        try:
            result = act()
        except FAILURES as error:
            failure, kind = error, 1 + [isinstance(error, each) for each in FAILURES].index(True)
        if kind := self.data.any_rank(kind):
            raise failure or FAILURES[kind - 1]("another rank has failed and gives the cause")
        return result

    def _after_block(self) -> bool:
        """Calls `on_block_collected` of the callbacks; returns whether collection is to end."""
        if (trainer := self.data.trainer) is None:
            return False
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by a connector
            if isinstance(callback, CollectionHook):
                callback.on_block_collected(trainer, trainer.lightning_module)
        return trainer.should_stop

    def _drain(self) -> Iterator[TensorDictBase]:
        while self.pending:
            yield self.pending.pop(0)

    def _start(self) -> Blocks:
        """Builds environments and collector. Ranks have different seeds, so that they explore differently."""
        data, state = self.data, self._restored
        seed = (torch.initial_seed() + 10_007 * self.rank) % 2**31
        torch.manual_seed(seed)
        local = data.collector == "Local"
        saved = None if state is None or state["workers"] != data.workers or not local else state["envs"]
        blocks = self.clock.frames // self.clock.frames_per_block
        first = (seed + (saved is None) * blocks) % 2**31  # new episodes must not be those at the run's start
        found = self._local(first, saved) if local else self._remote(first)
        if saved is None and state is not None:
            self.returns.running.clear()
            for actor in range(data.actors):
                self.source.end_episodes(actor)
            rank_zero_warn("The environments cannot be restored in mid-episode: their episodes start anew")
        if state is not None:
            GlobalRNGState().load_state_dict(state["random"])
            self._restored = None
        return found

    def _local(self, seed: int, saved: Any) -> LocalBlocks:
        self._env = self.data.training_environment(seed)
        if saved is not None:
            self._env.restore(saved)
        steps, clock = self.clock.steps_per_block, self.clock
        return LocalBlocks(collector_of(self._env, self.agent, steps, clock.random_steps, lambda: clock.frames))

    def _remote(self, seed: int) -> Blocks:
        from dqs_lightning.collection.actors import RayBlocks  # which needs Ray

        return RayBlocks(self.data, self.agent, self.clock, seed, self.end_episodes)

    def snapshot(self) -> dict[str, Any]:
        """See `OnlineData.rank_state`."""
        return {
            **self.source.snapshot(),
            "frames": self.clock.frames,
            "pending": [batch.cpu().to_dict() for batch in self.pending],
            "returns": {str(actor): running.cpu() for actor, running in self.returns.running.items()},
            "last_return": self.returns.last,
            "envs": None if self._env is None else self._env.snapshot(),
            "workers": self.data.workers,
            "random": GlobalRNGState().state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a snapshot; environments and random state are restored when iteration starts."""
        self.source.restore(state)
        self.clock.frames = state["frames"]
        self.pending = [TensorDict.from_dict(batch, auto_batch_size=True, batch_dims=1) for batch in state["pending"]]
        self.returns.running = {int(actor): running for actor, running in state["returns"].items()}
        self.returns.last = state["last_return"]
        self._restored = state

    def state_dict(self) -> dict[str, Any]:
        """Empty: `OnlineData.rank_state` holds the state of each rank. Tells Lightning that iteration resumes."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `state_dict`."""
