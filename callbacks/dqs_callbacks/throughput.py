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
    is the number of workers that were replaced so far on this rank.
    """

    def __init__(self) -> None:
        self._mark = (0.0, 0, 0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark = (time.monotonic(), OnlineData.of(trainer).env_frames, trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not isinstance(pl_module, Agent):
            return
        if trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        data = OnlineData.of(trainer)
        now, frames, updates = time.monotonic(), data.env_frames, trainer.global_step
        then, frames_then, updates_then = self._mark
        seconds = max(now - then, 1e-9)
        metrics = {
            "time/env_fps": (frames - frames_then) / seconds,
            "time/updates_per_s": (updates - updates_then) / seconds,
        }
        if data.workers:
            metrics["time/worker_restarts"] = float(data.restarts.used)
        if data.train_return is not None:
            metrics["train/return"] = data.train_return
        pl_module.log_metrics(metrics)
        self._mark = (now, frames, updates)
