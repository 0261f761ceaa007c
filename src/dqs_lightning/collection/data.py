"""LightningDataModule for online RL: environment, run length, updates per environment step."""

import importlib.util
import math
from typing import Any, Literal, Self

import lightning as L
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from tensordict import TensorDictBase

from dqs_lightning.agents import Agent
from dqs_lightning.checkpoint.archive import CheckpointError, load_run
from dqs_lightning.checkpoint.restore import UntrustedNameError, saved_arguments
from dqs_lightning.collection.environments import EnvironmentData
from dqs_lightning.collection.flags import check_flags
from dqs_lightning.collection.hindsight import Strategy
from dqs_lightning.collection.loader import OnlineLoader
from dqs_lightning.collection.replay import Replay
from dqs_lightning.collection.source import Rollouts, Source
from dqs_lightning.collection.tasks import check_agent, check_members
from dqs_lightning.envs import Environment
from dqs_lightning.envs.restarts import Restarts
from dqs_lightning.envs.transforms import Transform
from dqs_lightning.evaluation.loader import Evaluation, EvaluationLoader, combined
from dqs_lightning.ranges import Count, CountOrZero, Fraction, Positive, checked
from dqs_lightning.ranks import max_over_ranks

CollectorKind = Literal["Local", "Ray"]


class OnlineData(EnvironmentData):
    """Collects transitions with the agent that is being trained, and yields one batch for each update.

    Frames are counted over all ranks: agent steps x action repeat x environments x ranks. Each rank has its own
    environments and seeds, its own buffer, and its own batches. For an on-policy agent (`Agent.rollout`)
    steps_per_collect, batch_size, replay_size, n_steps, init_random_frames, learning_starts and updates_per_step have
    no effect.

    Args:
        environment: the task.
        total_frames: length of the run in environment frames, over all ranks; >= 1.
        num_envs: environments of each rank, stepped together; >= 1, a multiple of the number of tasks of `MultiTask`.
        workers: processes among which each rank's environments are divided; 0 steps them in the rank's own process.
        steps_per_collect: steps of each environment in a block, after which the updates that are due are made; >= 1.
        batch_size: transitions in one batch, on each rank; >= 1.
        replay_size: capacity of each rank's buffer in transitions; >= 1.
        replay_on_device: whether the buffer is in the memory of the training device; 4 bytes a number.
        n_steps: steps of a transition in the buffer: their summed rewards, and the state after the last (`MultiStep`);
            >= 1.
        init_random_frames: frames of uniformly random actions, over all ranks, before the first update.
        learning_starts: frames, over all ranks, before the first update. Those beyond init_random_frames are collected
            with the policy, such as one that is already trained (`StartFrom`).
        updates_per_step: gradient updates for each agent step of one rank; > 0, may be a fraction.
        step_timeout_s: seconds after which a step of the environments counts as hanging; > 0. Workers are then
            replaced, up to three times in a run; without workers, or after that, the run ends with
            `EnvironmentFailure`. Construction and the first reset have 300 s.
        collector: "Local": each rank collects in its own process; "Ray": in actors on the machines of a Ray cluster,
            while it learns (the extra `sweep`).
        actors: processes of each rank that collect, each with `num_envs` environments and one CPU; >= 1.
        max_policy_age: updates that the weights with which an actor collects may be older than the agent when the block
            arrives; at least what is due for one block of each actor. None: twice that.
        ray_address: of the cluster, host:port or "auto"; None: Ray is started on this machine.
        transforms: of the observations, in training and evaluation alike, and of the rewards that the agent learns
            from, in this order. Returns are those of the environment itself.
        hindsight: share of sampled transitions whose goal is replaced by one that their episode achieved later, for
            goal environments (see `Hindsight`); in [0, 1].
        hindsight_strategy: "future": after any later step; "final": after the last one.
    """

    @checked
    def __init__(
        self,
        environment: Environment,
        total_frames: Count = 100_000,
        num_envs: Count = 1,
        workers: CountOrZero = 0,
        steps_per_collect: Count = 8,
        batch_size: Count = 256,
        replay_size: Count = 1_000_000,
        replay_on_device: bool = False,
        n_steps: Count = 1,
        init_random_frames: CountOrZero = 5_000,
        learning_starts: CountOrZero = 0,
        updates_per_step: Positive = 1.0,
        step_timeout_s: Positive = 10.0,
        collector: CollectorKind = "Local",
        actors: Count = 1,
        max_policy_age: Count | None = None,
        ray_address: str | None = None,
        transforms: list[Transform] | None = None,
        hindsight: Fraction = 0.0,
        hindsight_strategy: Strategy = "future",
    ) -> None:
        super().__init__(environment, num_envs, workers, step_timeout_s, transforms or ())
        check_members(environment, num_envs, workers)
        for name, value in (("init_random_frames", init_random_frames), ("learning_starts", learning_starts)):
            if value >= total_frames:
                raise ValueError(f"{name}={value}: must be < {total_frames=}")
        self.collector, self.actors, self.ray_address = collector, actors, ray_address
        self.steps_per_collect, self.updates_per_step = steps_per_collect, updates_per_step
        self._check_actors(workers, max_policy_age)
        self.max_policy_age = max_policy_age or 2 * actors * self.updates_per_block
        self.save_hyperparameters()
        self.total_frames, self.batch_size = total_frames, batch_size
        self.n_steps, self.replay_size, self.replay_on_device = n_steps, replay_size, replay_on_device
        self.init_random_frames, self.learning_starts = init_random_frames, learning_starts
        self.hindsight, self.hindsight_strategy = hindsight, hindsight_strategy
        self.evaluation = Evaluation()
        """How the agent is evaluated; the callback `Evaluate` sets it."""
        self.lost_actors = 0
        """Actors that were lost, and replaced, so far."""
        self.policy_age = 0
        """Largest age, in updates, of the weights that collected a block, since `Throughput` has last logged it."""
        self._loader: OnlineLoader | None = None
        self._restored: dict[str, Any] | None = None
        self._continues = False

    def _check_actors(self, workers: int, max_policy_age: int | None) -> None:
        """Refuses settings of actors that do not fit together."""
        if self.collector == "Local":
            given = {"actors": self.actors > 1, "max_policy_age": max_policy_age, "ray_address": self.ray_address}
            if name := next((name for name, value in given.items() if value), None):
                raise ValueError(f"{name}={given[name] if name != 'actors' else self.actors}: needs collector=Ray")
        elif workers:
            raise ValueError(f"workers={workers}: must be 0 with collector=Ray; set actors")
        if max_policy_age is not None and max_policy_age < (least := self.actors * self.updates_per_block):
            raise ValueError(
                f"max_policy_age={max_policy_age}: must be >= {least}, the updates that are due for one block of each "
                f"of {self.actors} actors; fewer steps_per_collect make it less"
            )

    @property
    def updates_per_block(self) -> int:
        """Largest number of updates that are due for one block."""
        return math.ceil(self.updates_per_step * self.num_envs * self.steps_per_collect)

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Return the data of a run's `last.ckpt`, without its replay; no code that the file names is run.

        `kwargs` replace saved arguments. `map_location` and `weights_only` have no effect; `hparams_file` is refused.

        Raises:
            CheckpointError: when the file is no run's checkpoint, or names a class that `restore.named_class` refuses.
        """
        if hparams_file is not None:
            raise ValueError(f"hparams_file={hparams_file}: must be left out")
        try:
            saved = saved_arguments(load_run(checkpoint_path), cls.CHECKPOINT_HYPER_PARAMS_KEY, cls)
            return cls(**{**saved, **kwargs})
        except UntrustedNameError as error:
            raise CheckpointError(f"{checkpoint_path}: {error}") from error
        except (TypeError, ValueError) as error:
            hint = "a package that registers an environment is imported by --trust PACKAGE"
            raise CheckpointError(f"{checkpoint_path}: its data cannot be built here: {error}; {hint}") from error

    @staticmethod
    def of(trainer: L.Trainer) -> "OnlineData":
        """The data of a running trainer; a TypeError where it has other data."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, OnlineData):
            raise TypeError(f"this needs a Trainer that fits OnlineData, not {type(data).__name__}")
        return data

    @property
    def env_frames(self) -> int:
        """Frames collected so far, over all ranks."""
        return self._loader.clock.frames if self._loader else 0

    @property
    def finished(self) -> bool:
        """Whether all updates of the run have been made."""
        return self._loader is not None and self._loader.finished

    @property
    def pending(self) -> int:
        """Updates that are still to come before more is collected."""
        return len(self._loader.pending) if self._loader else 0

    @property
    def train_return(self) -> float | None:
        """Mean return of this rank's latest finished training episodes; None before the first."""
        return self._loader.returns.last if self._loader else None

    def source(self, agent: Agent, world_size: int = 1) -> Source:
        """Returns what turns blocks into batches: a replay buffer, or rollouts for an on-policy agent.

        Raises a ValueError that names the numbers when they do not fit together.
        """
        found = (Rollouts if agent.rollout else Replay)(self, agent, world_size)
        if self.collector == "Ray" and importlib.util.find_spec("ray") is None:
            raise ValueError('collector=Ray: Ray is not installed; run pip install "dqs-lightning[sweep]"')
        return found

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.trainer is not None:
            check_flags(self.trainer)
            # A run is one epoch: callbacks that monitor an evaluation act after each one, not at the end of the epoch.
            self.trainer.check_val_every_n_epoch = None

    def train_dataloader(self) -> CombinedLoader:
        assert self.trainer is not None
        trainer, agent, self.restarts = self.trainer, self.trainer.lightning_module, Restarts()
        assert isinstance(agent, Agent)
        check_agent(agent, self)
        source = self.source(agent, trainer.world_size)
        self._loader = OnlineLoader(self, agent, source, trainer.global_rank)
        if self._restored is not None:
            self._loader.restore(self._restored)
        elif self._continues:
            raise CheckpointError(
                f"{trainer.ckpt_path}: the replay buffer is missing, so the run cannot be continued; a run that is to "
                "be continued needs the callback RunCheckpoint, both when it is saved and when it continues"
            )
        self._restored, self._continues = None, False
        agent.env_frames = self.env_frames
        return combined(self._loader, "max_size_cycle")

    def val_dataloader(self) -> CombinedLoader:
        assert self.trainer is not None
        return combined(EvaluationLoader(self, self.trainer), "sequential")

    def any_rank(self, value: int) -> int:
        """The largest of a small number >= 0 over all ranks, which must all call it."""
        if self.trainer is None or self.trainer.world_size == 1:
            return value
        return int(max_over_ranks(torch.tensor(float(value), device=self.trainer.strategy.root_device)))

    def state_dict(self) -> dict[str, Any]:
        """Marks a checkpoint as one of a run; the state itself is in the ranks' own files (`rank_state`)."""
        return {"env_frames": self.env_frames}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._continues = self.trainer is not None and self.trainer.training

    def rank_state(self) -> dict[str, Any]:
        """Returns the state with which this rank continues exactly, such as its replay, as plain values."""
        assert self._loader is not None
        return self._loader.snapshot()

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Continue from `rank_state` at the next fit."""
        self._restored = state

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        if isinstance(batch, TensorDictBase):
            return batch.to(device, non_blocking=True)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)
