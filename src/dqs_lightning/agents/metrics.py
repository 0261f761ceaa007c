"""Metrics of an agent: means over updates, rows of the loggers, and what an evaluation measured."""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from dqs_lightning.evaluation.returns import mean_with_interval


class Metrics(L.LightningModule):
    """LightningModule whose metrics have environment frames as an axis beside updates."""

    env_frames: int = 0
    """Environment frames collected so far, over all ranks; set where transitions are collected."""

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    @torch.no_grad()
    def accumulate(self, **metrics: Tensor) -> None:
        """Accumulates scalar tensors under train/, and logs their means at the Trainer's logging interval.

        The mean of each name is over the calls that had it. No device-to-host sync between two rows.
        """
        for name, value in metrics.items():
            value = value.detach().float()
            # Sums from a checkpoint may be on another device.
            self._sums[name] = self._sums[name].to(value.device) + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1
        every: int = 0 if self._trainer is None else self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by a connector
        if every and self.global_step % every == 0:
            means = {f"train/{name}": float(total) / self._counts[name] for name, total in self._sums.items()}
            self.log_metrics(means)
            self._sums, self._counts = {}, {}

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Logs `eval/return`, the mean of the `return` [episodes] of a batch, and the bounds of its 95 % interval.

        Of several tasks it also logs the mean of each, `eval/return/NAME`.
        """
        mean, (low, high) = mean_with_interval(batch["return"])
        metrics = {f"eval/{name}": float(returns.mean()) for name, returns in batch.items()}
        metrics |= {"eval/return": mean, "eval/return_low": low, "eval/return_high": high}
        fits = self.trainer.state.fn == TrainerFn.FITTING
        # `Trainer.validate` returns what goes to loggers; during training they get it with the frames beside it.
        self.log_dict(metrics, logger=not fits, sync_dist=True, batch_size=1)
        if fits and not self.trainer.sanity_checking:
            self.log_metrics(metrics)

    def log_metrics(self, metrics: dict[str, float]) -> None:
        """Send metrics to every logger and to `Trainer.callback_metrics`, with `env_frames` as an axis.

        `self.log` would drop whatever does not fall on a logging step, such as an evaluation.
        """
        metrics = {**metrics, "env_frames": float(self.env_frames)}
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=self.global_step)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._sums = dict(checkpoint.get("metric_sums", {}))
        self._counts = dict(checkpoint.get("metric_counts", {}))
        self.env_frames = int(checkpoint.get("env_frames", 0))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["metric_sums"], checkpoint["metric_counts"] = dict(self._sums), dict(self._counts)
        checkpoint["env_frames"] = self.env_frames
