"""Logs the speed of a run."""

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from dqs_lightning.agents import Agent
from dqs_lightning.collection.data import OnlineData


class Throughput(Callback):
    """Logs `time/env_fps` (frames of all ranks), `time/updates_per_s` and `train/return` at the log interval.

    Both rates are over the time since the last row, everything included. With `data.workers`, `time/worker_restarts`
    is the number of workers that were replaced so far on this rank. Without them, and where the environment is a
    simulation that may diverge, `env/physics_errors` is its `physics_errors` so far, of training and evaluation.
    """

    def __init__(self) -> None:
        self._mark = (0.0, 0, 0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark = (time.monotonic(), OnlineData.of(trainer).env_frames, trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by a connector
        if not isinstance(pl_module, Agent) or trainer.global_step % every:
            return
        data, before = OnlineData.of(trainer), self._mark
        self._mark = (time.monotonic(), data.env_frames, trainer.global_step)
        seconds, frames, updates = (now - then for now, then in zip(self._mark, before, strict=True))
        seconds = max(seconds, 1e-9)
        metrics = {"time/env_fps": frames / seconds, "time/updates_per_s": updates / seconds}
        if data.workers:
            metrics["time/worker_restarts"] = float(data.restarts.used)
        elif data.environment.physics_errors is not None:
            metrics["env/physics_errors"] = float(data.environment.physics_errors)
        if data.train_return is not None:
            metrics["train/return"] = data.train_return
        pl_module.log_metrics(metrics)
