"""Base class of callbacks that evaluate the policy every so many frames."""

from abc import ABC, abstractmethod
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng

from dqs_lightning.agents import Agent
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.envs import EnvironmentFailure
from dqs_lightning.ranges import Count, checked
from dqs_lightning.stop_signal import STOP, StopInterrupt


class Periodic(Callback, ABC):
    """Calls `measure` every `every_frames` frames and when the run is finished, on rank zero, after their updates.

    Runs with an isolated random state, so training is bitwise identical with and without it; each call has its own
    seed, which depends on the run's seed and the frame alone. Other ranks continue and wait at the next update. A stop
    signal interrupts the call, which is then made when the run continues; so is a call in which an environment fails,
    which ends the run.

    Args:
        every_frames: environment frames between two calls; >= 1.
    """

    @checked
    def __init__(self, every_frames: Count) -> None:
        self.every_frames = every_frames
        self._last_frames = 0
        self._interrupted = False
        self._failure: EnvironmentFailure | None = None

    @abstractmethod
    def measure(self, trainer: L.Trainer, agent: Agent, seed: int) -> None:
        """Evaluates the policy; torch's generator has been seeded with `seed`."""

    @property
    def interrupted_at(self) -> int | None:
        """Frames of the call that a stop signal interrupted; None where none was."""
        return self._last_frames if self._interrupted else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._interrupted:
            self.evaluate(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        data, last = OnlineData.of(trainer), self._last_frames
        due = data.env_frames // self.every_frames > last // self.every_frames
        due = due or (data.finished and data.env_frames > last)
        if due and not data.pending:  # a policy is evaluated at N frames when it has learned from them
            self.evaluate(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._failure is not None:
            raise self._failure

    def evaluate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Calls `measure` now, on rank zero."""
        assert isinstance(pl_module, Agent)
        self._last_frames = OnlineData.of(trainer).env_frames
        if not trainer.is_global_zero:
            return
        self._interrupted = True
        with isolate_rng():  # restores the random state only if no exception passes through it
            seed = (torch.initial_seed() + 1_000_003 + self._last_frames) % 2**31
            torch.manual_seed(seed)
            try:
                with STOP.interrupting():
                    self.measure(trainer, pl_module, seed)
            except StopInterrupt:
                return
            except EnvironmentFailure as error:  # raised when all ranks have stopped and saved
                self._failure, trainer.should_stop = error, True
                return
            except OSError as error:  # a full disk does not end the run
                rank_zero_warn(f"{type(self).__name__}: cannot write its file at {self._last_frames} frames: {error}")
        self._interrupted = False

    def state_dict(self) -> dict[str, Any]:
        return {"last_frames": self._last_frames, "interrupted": self._interrupted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last_frames, self._interrupted = state_dict["last_frames"], state_dict["interrupted"]
