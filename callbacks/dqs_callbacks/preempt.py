"""Stops a run in order when a signal arrives."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from dqs_lightning.collection.loader import CollectionHook
from dqs_lightning.ranks import max_over_ranks
from dqs_lightning.stop_signal import STOP, Phase


class Preempt(CollectionHook, Callback):
    """Stops the run on SIGTERM, SIGINT, SIGUSR1 or SIGHUP to any rank; `RunCheckpoint` then saves.

    All ranks agree after each update, and during the warm-up after each block of transitions, and stop at the same
    one. An evaluation is interrupted and is done when the run continues. A second SIGINT interrupts at once.

    Args:
        enabled: handle the signals; False leaves them as they are.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._installed = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not self.enabled or stage != "fit":
            return
        self._installed = STOP.install(Phase.BUILD)
        # Lightning's own handler broadcasts from inside the handler, which deadlocks ranks that are elsewhere.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        # Without them Lightning's message before each batch, whether a signal has arrived, tells nothing.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.enabled and STOP.installed:
            STOP.phase = Phase.TRAIN

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.on_block_collected(trainer, pl_module)

    def on_block_collected(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops all ranks if one of them received a signal, or is to stop for another reason."""
        stop = trainer.should_stop or (self.enabled and STOP.received is not None)
        if trainer.world_size > 1:
            stop = bool(max_over_ranks(torch.tensor(float(stop), device=pl_module.device)) > 0)
        trainer.should_stop = stop

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            STOP.phase = Phase.DONE
            if self._installed:
                STOP.uninstall()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")
