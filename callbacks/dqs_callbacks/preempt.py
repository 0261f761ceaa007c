"""A stop signal ends a run in order."""

import signal
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Preempt(Callback):
    """On SIGTERM, SIGUSR1 or SIGINT to any rank: all ranks finish the update and stop; `RunCheckpoint` saves.

    The handler only sets a flag; the ranks agree on it after each update. `stopped` then says that the run is
    unfinished. A second signal acts as it would without this callback.

    Args:
        enabled: false switches it off.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.stopped = False
        self._asked = False
        self._previous: dict[int, Any] = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.enabled:
            self._previous = {number: signal.signal(number, self._ask) for number in SIGNALS}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        asked = self._asked
        if trainer.world_size > 1:
            flag = torch.tensor(float(asked), device=pl_module.device)
            asked = bool(trainer.strategy.reduce(flag, reduce_op="sum") > 0)
        if not asked or self.stopped:
            return
        self.stopped = trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
