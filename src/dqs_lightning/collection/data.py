"""LightningDataModule for online RL: environment, run length, updates per environment step."""

from contextlib import closing
from functools import cached_property, partial
from typing import Any, Self

import lightning as L
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from tensordict import TensorDictBase

from dqs_lightning.agents import Agent
from dqs_lightning.checkpoint.archive import CheckpointError, load_run
from dqs_lightning.checkpoint.restore import UntrustedNameError, saved_arguments
from dqs_lightning.collection.flags import check_flags
from dqs_lightning.collection.hindsight import Strategy
from dqs_lightning.collection.loader import OnlineLoader
from dqs_lightning.collection.replay import Replay
from dqs_lightning.collection.source import Rollouts, Source
from dqs_lightning.envs import Environment
from dqs_lightning.envs.deadline import Deadline
from dqs_lightning.envs.restarts import START_LIMIT_S, Restarts
from dqs_lightning.envs.transformed import transformed
from dqs_lightning.envs.transforms import Transform
from dqs_lightning.envs.watched import Watched
from dqs_lightning.envs.workers import WorkerBatch
from dqs_lightning.evaluation.loader import Evaluation, EvaluationLoader, combined
from dqs_lightning.ranges import Count, CountOrZero, Fraction, Positive, checked


class OnlineData(L.LightningDataModule):
    """Collects transitions with the agent that is being trained, and yields one batch for each update.

    Frames are counted over all ranks: agent steps x action repeat x environments x ranks. Each rank has its own
    environments and seeds, its own buffer, and its own batches. For an on-policy agent (`Agent.rollout`)
    steps_per_collect, batch_size, replay_size, n_steps, init_random_frames, learning_starts and updates_per_step have
    no effect.

    Args:
        environment: the task.
        total_frames: length of the run in environment frames, over all ranks; >= 1.
        num_envs: environments of each rank, stepped together; >= 1.
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
        transforms: list[Transform] | None = None,
        hindsight: Fraction = 0.0,
        hindsight_strategy: Strategy = "future",
    ) -> None:
        super().__init__()
        if workers and num_envs % workers:
            raise ValueError(f"workers={workers}: must be 0 or a divisor of num_envs={num_envs}")
        for name, value in (("init_random_frames", init_random_frames), ("learning_starts", learning_starts)):
            if value >= total_frames:
                raise ValueError(f"{name}={value}: must be < {total_frames=}")
        self.save_hyperparameters()
        self.environment, self.total_frames, self.num_envs = environment, total_frames, num_envs
        self.steps_per_collect, self.batch_size, self.n_steps = steps_per_collect, batch_size, n_steps
        self.replay_size, self.updates_per_step, self.step_timeout_s = replay_size, updates_per_step, step_timeout_s
        self.init_random_frames, self.learning_starts = init_random_frames, learning_starts
        self.workers, self.replay_on_device = workers, replay_on_device
        self.transforms = list(transforms or ())
        self.hindsight, self.hindsight_strategy = hindsight, hindsight_strategy
        self._makes = transformed(environment, self.transforms)
        self.evaluation = Evaluation()
        """How the agent is evaluated; the callback `Evaluate` sets it."""
        self.restarts = Restarts()
        """Counts replaced worker processes."""
        self._loader: OnlineLoader | None = None
        self._restored: dict[str, Any] | None = None
        self._continues = False

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

    @cached_property
    def _dimensions(self) -> tuple[int, int]:
        with closing(self.make_environment(1, seed=0)) as env:
            return env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]

    @property
    def observation_dim(self) -> int:
        return self._dimensions[0]

    @property
    def action_dim(self) -> int:
        return self._dimensions[1]

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

    def make_environment(self, num_envs: int, seed: int) -> Watched:
        """Environments in this process, whose failures raise `EnvironmentFailure`."""
        name, make = self.environment.name, partial(self._makes.make, num_envs, seed)
        step = Deadline(f"{name}: a step", self.step_timeout_s)
        return Watched(make, name, step, Deadline(f"{name}: construction", START_LIMIT_S))

    def training_environment(self, seed: int) -> Watched | WorkerBatch:
        """Environments for collecting: in this process, or divided among `workers` processes."""
        if not self.workers:
            return self.make_environment(self.num_envs, seed)
        return WorkerBatch(self._makes, self.num_envs, self.workers, seed, self.step_timeout_s, self.restarts)

    def source(self, agent: Agent, world_size: int = 1) -> Source:
        """Returns what turns blocks into batches: a replay buffer, or rollouts for an on-policy agent.

        Raises a ValueError that names the numbers when they do not fit together.
        """
        return (Rollouts if agent.rollout else Replay)(self, agent, world_size)

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.trainer is not None:
            check_flags(self.trainer)
            # A run is one epoch: callbacks that monitor an evaluation act after each one, not at the end of the epoch.
            self.trainer.check_val_every_n_epoch = None

    def train_dataloader(self) -> CombinedLoader:
        assert self.trainer is not None
        trainer, agent, self.restarts = self.trainer, self.trainer.lightning_module, Restarts()
        assert isinstance(agent, Agent)
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
        own = torch.tensor(float(value), device=self.trainer.strategy.root_device)
        return int(self.trainer.strategy.reduce(own, reduce_op="max"))

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
