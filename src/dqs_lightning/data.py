"""Online data: a TorchRL collector fills a replay buffer, from which each update's batch is drawn."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.checkpoint import GlobalRNGState
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import EnvBase, ParallelEnv

from dqs_lightning.envs import Environment

TRANSITION = ("observation", "action", *(("next", key) for key in ("observation", "reward", "terminated", "truncated")))


class OnlineData(L.LightningDataModule):
    """Collects with the agent that is being trained, and yields one batch of transitions for each update.

    The clock is environment frames of the whole world: agent steps x action repeat x environments x ranks. Each rank
    has its own environments (seeded apart), its own buffer, and draws its own batches.

    Args:
        environment: what to learn.
        total_frames: length of the run in environment frames, over all ranks; >= 1.
        num_envs: environments of each rank, stepped together; >= 1.
        workers: processes among which each rank's environments are divided; 0 steps them in the rank's own process.
        steps_per_collect: steps of each environment between two visits to the buffer; >= 1.
        batch_size: transitions in one batch, on each rank; >= 1.
        replay_size: capacity of each rank's buffer in transitions; >= 1.
        init_random_frames: frames of uniformly random actions, over all ranks, before the first update.
        updates_per_step: gradient updates for each agent step of one rank; > 0, may be a fraction.

    Raises:
        ValueError: when a number is out of its range; the message names it.
    """

    def __init__(
        self,
        environment: Environment,
        total_frames: int = 100_000,
        num_envs: int = 1,
        workers: int = 0,
        steps_per_collect: int = 8,
        batch_size: int = 256,
        replay_size: int = 1_000_000,
        init_random_frames: int = 5_000,
        updates_per_step: float = 1.0,
    ) -> None:
        super().__init__()
        at_least_one = dict(
            total_frames=total_frames,
            num_envs=num_envs,
            steps_per_collect=steps_per_collect,
            batch_size=batch_size,
            replay_size=replay_size,
        )
        for name, value in at_least_one.items():
            if value < 1:
                raise ValueError(f"{name}={value}: allowed is 1 or more")
        if workers and (workers < 0 or num_envs % workers):
            raise ValueError(f"workers={workers}: allowed is 0 or a divisor of num_envs={num_envs}")
        if not 0 <= init_random_frames < total_frames:
            raise ValueError(f"init_random_frames={init_random_frames}: allowed is 0 to below {total_frames=}")
        if not 0 < updates_per_step < math.inf:
            raise ValueError(f"updates_per_step={updates_per_step}: allowed is a finite number > 0")
        self.save_hyperparameters()
        self.environment = environment
        self.total_frames, self.init_random_frames = total_frames, init_random_frames
        self.num_envs, self.workers, self.steps_per_collect = num_envs, workers, steps_per_collect
        self.batch_size, self.replay_size = batch_size, replay_size
        self.updates_per_step = float(updates_per_step)
        self._dims: tuple[int, int] | None = None
        self._loader: OnlineLoader | None = None
        self._restored: dict[str, Any] | None = None

    @staticmethod
    def of(trainer: L.Trainer) -> "OnlineData":
        """The data of a running trainer.

        Raises:
            TypeError: when the trainer was given other data.
        """
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, OnlineData):
            raise TypeError(f"this needs a Trainer that fits OnlineData, not {type(data).__name__}")
        return data

    def _dimensions(self) -> tuple[int, int]:
        if self._dims is None:
            env = self.environment.make(1, seed=0)
            self._dims = (env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1])
            env.close(raise_if_closed=False)
        return self._dims

    @property
    def observation_dim(self) -> int:
        return self._dimensions()[0]

    @property
    def action_dim(self) -> int:
        return self._dimensions()[1]

    @property
    def env_frames(self) -> int:
        """Frames collected so far, over all ranks."""
        return self._loader.env_frames if self._loader else 0

    @property
    def train_return(self) -> float | None:
        """Mean return of this rank's latest finished training episodes; None before the first."""
        return self._loader.last_return if self._loader else None

    def make_env(self, num_envs: int, seed: int) -> EnvBase:
        """Environments for collecting: in this process, or divided among `workers` processes."""
        if not self.workers:
            return self.environment.make(num_envs, seed)
        each = num_envs // self.workers
        makers = [partial(self.environment.make, each, seed + i * each) for i in range(self.workers)]
        return ParallelEnv(self.workers, makers)

    def train_dataloader(self) -> "OnlineLoader":
        assert self.trainer is not None
        trainer = self.trainer
        self._loader = OnlineLoader(self, trainer.lightning_module, trainer.global_rank, trainer.world_size)
        if self._restored is not None:
            self._loader.restore(self._restored)
            self._restored = None
        return self._loader

    def rank_state(self) -> dict[str, Any]:
        """What this rank needs to continue exactly: replay, simulators, random state, clock; plain values."""
        assert self._loader is not None
        return self._loader.snapshot()

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Continue from `rank_state` at the next fit."""
        self._restored = state

    def transfer_batch_to_device(
        self, batch: TensorDictBase, device: torch.device, dataloader_idx: int
    ) -> TensorDictBase:
        moved: TensorDictBase = batch.to(device, non_blocking=True)
        return moved


class OnlineLoader:
    """Iterates over the batches of a run. Its length is the number of updates; Lightning's progress counts them.

    The collector and its environments live only while it is iterated.
    """

    def __init__(self, data: OnlineData, policy: L.LightningModule, rank: int, world_size: int) -> None:
        self.data, self.policy, self.rank = data, policy, rank
        steps = data.num_envs * data.steps_per_collect
        self.steps_per_block = steps
        self.frames_per_block = steps * data.environment.action_repeat * world_size
        self.num_blocks = math.ceil(data.total_frames / self.frames_per_block)
        self.random_blocks = math.ceil(data.init_random_frames / self.frames_per_block)
        capacity = min(data.replay_size, self.num_blocks * steps)
        self.replay_buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(capacity))
        self.blocks = 0
        self.last_return: float | None = None
        self._pending: list[TensorDictBase] = []
        self._returns: Tensor | None = None
        self._env: EnvBase | None = None
        self._restored: dict[str, Any] | None = None
        if len(self) < 1:
            raise ValueError(
                f"total_frames={data.total_frames}: leaves no update after init_random_frames="
                f"{data.init_random_frames} at updates_per_step={data.updates_per_step}"
            )

    @property
    def env_frames(self) -> int:
        return self.blocks * self.frames_per_block

    def _updates_after(self, blocks: int) -> int:
        """Updates that are due once `blocks` blocks are collected."""
        return math.floor(self.data.updates_per_step * max(0, blocks - self.random_blocks) * self.steps_per_block)

    def __len__(self) -> int:
        return self._updates_after(self.num_blocks)

    def __iter__(self) -> Iterator[TensorDictBase]:
        collector = self._start()
        try:
            yield from self._drain()
            blocks = iter(collector)
            while self.blocks < self.num_blocks:
                self._store(next(blocks))
                due = self._updates_after(self.blocks) - self._updates_after(self.blocks - 1)
                if due:
                    drawn = self.replay_buffer.sample(due * self.data.batch_size).select(*TRANSITION)
                    self._pending = list(drawn.reshape(due, self.data.batch_size).unbind(0))
                    yield from self._drain()
        finally:
            collector.shutdown()
            self._env = None

    def _drain(self) -> Iterator[TensorDictBase]:
        while self._pending:
            yield self._pending.pop(0)

    def _store(self, block: TensorDictBase) -> None:
        self.replay_buffer.extend(block.select(*TRANSITION).reshape(-1))
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

    def _start(self) -> Collector:
        """Build environments and collector. Ranks are seeded apart, so that they explore differently."""
        data = self.data
        seed = (torch.initial_seed() + 10_007 * self.rank) % 2**31
        torch.manual_seed(seed)
        env = data.make_env(data.num_envs, seed)
        state = self._restored
        if state is not None and state["envs"] is not None:
            env.restore(state["envs"])
        elif state is not None:
            rank_zero_warn(f"{data.environment.name} cannot be restored in mid-episode: its episodes start anew")
        device = self.policy.device
        random_steps = max(0, self.random_blocks - self.blocks) * self.steps_per_block
        collector = Collector(
            env,
            TensorDictModule(self.policy, in_keys=["observation"], out_keys=["action"]),
            frames_per_batch=self.steps_per_block,
            total_frames=-1,
            init_random_frames=random_steps or None,
            policy_device=device,
            env_device="cpu",
            storing_device="cpu",
            track_traj_ids=False,
            auto_register_policy_transforms=False,
        )
        self._env = env
        if state is not None:
            GlobalRNGState().load_state_dict(state["random"])
            self._restored = None
        return collector

    def snapshot(self) -> dict[str, Any]:
        """See `OnlineData.rank_state`."""
        replay = self.replay_buffer[:].select(*TRANSITION).contiguous() if len(self.replay_buffer) else None
        return {
            "blocks": self.blocks,
            "replay": None if replay is None else replay.to_dict(),
            "writer": dict(self.replay_buffer.writer.state_dict()),
            "pending": [batch.to_dict() for batch in self._pending],
            "returns": self._returns,
            "last_return": self.last_return,
            "envs": env.snapshot() if (env := self._env) is not None and hasattr(env, "snapshot") else None,
            "random": GlobalRNGState().state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a snapshot; the environments and the random state follow when iteration starts."""
        self.blocks = state["blocks"]
        if state["replay"] is not None:
            replay = TensorDict.from_dict(state["replay"], auto_batch_size=True, batch_dims=1)
            self.replay_buffer.extend(replay)
            self.replay_buffer.writer.load_state_dict(state["writer"])
        self._pending = [TensorDict.from_dict(batch, auto_batch_size=True, batch_dims=1) for batch in state["pending"]]
        self._returns, self.last_return = state["returns"], state["last_return"]
        self._restored = state

    def state_dict(self) -> dict[str, Any]:
        """Empty: `OnlineData.rank_state` holds it all, for each rank. Tells Lightning that iteration resumes."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `state_dict`."""
