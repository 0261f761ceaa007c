"""Iterates over the batches of a run: a TorchRL collector fills a source, from which each update's batch is drawn."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.checkpoint import GlobalRNGState
from torchrl.collectors import Collector
from torchrl.envs import EnvBase

from dqs_lightning.agents import Agent
from dqs_lightning.collection.source import TRANSITION, Source
from dqs_lightning.envs import EnvironmentFailure
from dqs_lightning.envs.transforms import transform_rewards
from dqs_lightning.envs.watched import Watched
from dqs_lightning.envs.workers import WorkerBatch
from dqs_lightning.finite import MAX_MAGNITUDE, NonFiniteError, check_block, check_step, magnitude

if TYPE_CHECKING:
    from dqs_lightning.collection.data import OnlineData

T = TypeVar("T")


class CollectionHook:
    """Mixin of callbacks that are called while transitions are collected."""

    def on_block_collected(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called after a block of transitions after which no update is due, as in the warm-up.

        All ranks call it at the same blocks. Where `trainer.should_stop` is set afterwards, collection ends.
        """


class Behaviour(nn.Module):
    """Computes a collector's actions [..., d] for observations [..., o].

    For a non-finite action or observation it raises a NonFiniteError that names the environment, so that the cause is
    reported and not a failure of the environment or the agent that follows from it.

    Args:
        agent: chooses the actions.
        frames: returns the environment frames before the present block, for the message.
    """

    def __init__(self, agent: Agent, frames: Callable[[], int]) -> None:
        super().__init__()
        self.agent, self.frames = agent, frames

    def forward(self, observation: Tensor) -> Tensor:
        try:
            action: Tensor = self.agent(observation)
        except Exception:  # raised again unless the observation is its cause
            self._check("observation", observation)
            raise
        if not magnitude(action) <= MAX_MAGNITUDE:
            self._check("observation", observation)
            self._check("action", action)
        return action

    def _check(self, source: str, values: Tensor) -> None:
        check_step(source, values, f"after frame {self.frames():,}: ")


def collector_of(env: EnvBase, agent: Agent, steps: int, random_steps: int, frames: Callable[[], int]) -> Collector:
    """Collects blocks of `steps` steps of all environments together, the first `random_steps` of uniform actions.

    It closes the environments, also when it cannot be constructed. `frames` as in `Behaviour`.
    """
    try:
        return Collector(
            env,
            TensorDictModule(Behaviour(agent, frames), in_keys=["observation"], out_keys=["action"]),
            frames_per_batch=steps,
            total_frames=-1,
            init_random_frames=random_steps or None,
            policy_device=agent.device,
            env_device=env.device,
            storing_device=env.device,
            track_traj_ids=False,
            auto_register_policy_transforms=False,
        )
    except BaseException:
        env.close(raise_if_closed=False)
        raise


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
        self._env: Watched | WorkerBatch | None = None
        self._restored: dict[str, Any] | None = None

    @property
    def finished(self) -> bool:
        """Whether all updates of the run have been made."""
        return self.clock.updates >= self.clock.total_updates and not self.pending

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
                self.agent.env_frames = self.clock.frames
                self.returns.add(block)
                self.pending = self.source.batches(transform_rewards(self.data.transforms, block), due)
                if not self.pending and self._after_block():
                    return
                yield from self._drain()
        finally:
            collector.shutdown()
            self._env = None

    def _collect(self, blocks: Iterator[TensorDictBase]) -> TensorDictBase:
        """Returns the next block, checked to be finite."""
        block = next(blocks).select(*TRANSITION, ("next", "done"))
        check_block(block, self.clock.frames, self.clock.frames_per_block // block.shape[-1], self.rank)
        return block

    def _together(self, act: Callable[[], T]) -> T:
        """Returns the result of a function. Where it fails on one rank all raise, so that none waits for another."""
        failure: EnvironmentFailure | NonFiniteError | None = None
        try:
            result = act()
        except (EnvironmentFailure, NonFiniteError) as error:
            failure = error
        kinds = (EnvironmentFailure, NonFiniteError)
        if kind := self.data.any_rank(0 if failure is None else 1 + isinstance(failure, NonFiniteError)):
            raise failure or kinds[kind - 1]("another rank has failed and gives the cause")
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

    def _start(self) -> Collector:
        """Builds environments and collector. Ranks have different seeds, so that they explore differently."""
        data, state = self.data, self._restored
        seed = (torch.initial_seed() + 10_007 * self.rank) % 2**31
        torch.manual_seed(seed)
        saved = None if state is None or state["workers"] != data.workers else state["envs"]
        blocks = self.clock.frames // self.clock.frames_per_block
        first = (seed + (saved is None) * blocks) % 2**31  # new episodes must not be those at the run's start
        self._env = data.training_environment(first)
        if saved is not None:
            self._env.restore(saved)
        elif state is not None:
            self.returns.running = None
            self.source.end_episodes()
            rank_zero_warn("The environments cannot be restored in mid-episode: their episodes start anew")
        collector = collector_of(
            self._env, self.agent, self.clock.steps_per_block, self.clock.random_steps, lambda: self.clock.frames
        )
        if state is not None:
            GlobalRNGState().load_state_dict(state["random"])
            self._restored = None
        return collector

    def snapshot(self) -> dict[str, Any]:
        """See `OnlineData.rank_state`."""
        return {
            **self.source.snapshot(),
            "frames": self.clock.frames,
            "pending": [batch.cpu().to_dict() for batch in self.pending],
            "returns": None if self.returns.running is None else self.returns.running.cpu(),
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
        self.returns.running, self.returns.last = state["returns"], state["last_return"]
        self._restored = state

    def state_dict(self) -> dict[str, Any]:
        """Empty: `OnlineData.rank_state` holds the state of each rank. Tells Lightning that iteration resumes."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `state_dict`."""
