"""A hook for callbacks that act between blocks of transitions."""

import lightning as L


class CollectionHook:
    """Mixin of callbacks that are called while transitions are collected."""

    def on_block_collected(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called after a block of transitions after which no update is due, as in the warm-up.

        All ranks call it at the same blocks. Where `trainer.should_stop` is set afterwards, collection ends.
        """
