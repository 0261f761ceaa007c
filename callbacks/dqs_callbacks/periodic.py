"""Base classes of callbacks that evaluate the policy every so many frames, and of those that keep rows in a file."""

import contextlib
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng

from dqs_lightning.agents import Agent
from dqs_lightning.checkpoint.atomic import append_lines, atomic_write
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.envs import EnvironmentFailure
from dqs_lightning.ranges import Count, checked
from dqs_lightning.stop_signal import STOP, StopInterrupt


class Periodic(Callback, ABC):
    """Calls `measure` every `every_frames` frames and when the run is finished, on rank zero, after their updates.

    Runs with an isolated random state, so training is bitwise identical with and without it; each call has its own
    seed, which depends on the run's seed and the frame alone. Other ranks continue and wait at the next update. A stop
    signal interrupts the call, which is then made when the run continues; so is a call in which an environment fails,
    which ends the run. With `Trainer.fast_dev_run` it is called after each update.

    Args:
        every_frames: environment frames between two calls; >= 1.
    """

    on_all_ranks: ClassVar[bool] = False
    """Whether all ranks call `measure`, which then raises StopInterrupt and EnvironmentFailure on all of them."""

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
        # A policy is evaluated at N frames when it has learned from them.
        if (due and not data.pending) or trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by a connector
            self.evaluate(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._failure is not None:
            raise self._failure

    def evaluate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Calls `measure` now."""
        assert isinstance(pl_module, Agent)
        self._last_frames = OnlineData.of(trainer).env_frames
        if not (trainer.is_global_zero or self.on_all_ranks):
            return
        self._interrupted = True
        with isolate_rng():  # restores the random state only if no exception passes through it
            seed = (torch.initial_seed() + 1_000_003 + self._last_frames) % 2**31
            torch.manual_seed(seed)
            try:
                with contextlib.nullcontext() if self.on_all_ranks else STOP.interrupting():
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


def drop_later_rows(file: Path, updates: int, interrupted_at: int | None = None) -> None:
    """Drops the rows after this number of updates, that of the checkpoint from which a run continues.

    The row at `interrupted_at` frames, of a measurement that is made again, is dropped as well.
    """
    if not file.exists():
        return
    lines = file.read_text().splitlines()
    rows = [(line, json.loads(line)) for line in lines]
    kept = [line for line, row in rows if row["updates"] <= updates and row["env_frames"] != interrupted_at]
    if kept != lines:
        atomic_write("".join(f"{line}\n" for line in kept).encode(), file)


class PeriodicRows(Periodic):
    """A `Periodic` that adds a row, one JSON object a line, to a file at each call.

    Rows after the checkpoint of a continued run are dropped. A row that cannot be written, as on a full disk, is kept
    for the next attempt.
    """

    file: ClassVar[str]
    """Name in the run directory."""
    path: str | None = None
    """Where the file is; None: in the run directory."""

    def __init__(self, every_frames: int) -> None:
        super().__init__(every_frames)
        self._waiting: list[str] = []

    def _file(self, trainer: L.Trainer) -> Path:
        return Path(self.path) if self.path else Path(trainer.default_root_dir) / self.file

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            updates = -1 if trainer.ckpt_path is None else trainer.global_step  # a new run keeps no rows
            drop_later_rows(self._file(trainer), updates, self.interrupted_at)
        super().on_train_start(trainer, pl_module)

    def add(self, trainer: L.Trainer, row: dict[str, Any]) -> dict[str, Any]:
        """Writes a row, with the frames and updates so far in front, unless in a fast_dev_run; returns the row."""
        file = self._file(trainer)
        row = {"env_frames": OnlineData.of(trainer).env_frames, "updates": trainer.global_step, **row}
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by a connector
            return row
        self._waiting.append(json.dumps(row) + "\n")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            append_lines("".join(self._waiting), file)
        except OSError as error:
            rank_zero_warn(f"{file}: cannot be written ({error}); the rows are kept for the next attempt")
        else:
            self._waiting.clear()
        return row
