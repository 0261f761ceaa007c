"""Checkpoints that are whole or invisible on disk, and that continue a run exactly.

A run's checkpoint is `last.ckpt` (what all ranks share: weights, optimizer, loops, callbacks) and one file a rank
(what is its own: replay, random state, simulators). Both are read with `weights_only`, which runs no code.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from dqs_lightning.ranges import at_least


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or continued; the message names the file."""


def atomic_save(value: Any, path: str | os.PathLike[str]) -> None:
    """torch.save so that `path` holds either the old value or the whole new one, even if the machine stops."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            torch.save(value, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def safe_load(path: str | os.PathLike[str], map_location: Any = "cpu") -> Any:
    """Tensors and plain values from a file; never runs code from it.

    Raises:
        CheckpointError: when the file is missing, damaged, or holds anything else.
    """
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint file") from error
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason[:200]})") from error


def checkpoint_of(run: Path) -> Path:
    """Where the checkpoint of a run directory is or would be; another path is taken to be a checkpoint itself."""
    return run / "checkpoints" / "last.ckpt" if run.is_dir() else run


def load_run(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What all ranks of a run share, from its `last.ckpt`.

    Raises:
        CheckpointError: when the file cannot be read or is no run's checkpoint, such as a rank's own file.
    """
    found = safe_load(path)
    if not isinstance(found, dict) or "state_dict" not in found:
        raise CheckpointError(f"{path}: not a run's checkpoint; allowed is its last.ckpt")
    return found


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's file checkpoints, written atomically in the target's own folder and read without running code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        atomic_save(checkpoint, path)

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        checkpoint: dict[str, Any] = safe_load(path, map_location)
        return checkpoint


class RunCheckpoint(Checkpoint):
    """Keeps `last.ckpt` and the ranks' own files in `dirpath`, so that the same command continues the run.

    Written every `every_n_updates` updates, at the end, and when another callback stops the run. As a Lightning
    `Checkpoint` it acts after all other callbacks, so that it saves what they have come to.

    Args:
        dirpath: folder of the checkpoints; the command line sets it to the run's `checkpoints/`.
        every_n_updates: updates between two checkpoints; >= 1.
    """

    def __init__(self, dirpath: str = "checkpoints", every_n_updates: int = 10_000) -> None:
        at_least("every_n_updates", every_n_updates, 1)
        self.dirpath = Path(dirpath)
        self.every_n_updates = every_n_updates
        self._saved_at = -1

    @staticmethod
    def rank_file(folder: Path, step: int, rank: int) -> Path:
        """Where a rank keeps what is its own at a step."""
        return folder / f"step={step}-rank={rank}.pt"

    def save(self, trainer: L.Trainer) -> None:
        """Write a checkpoint now; every rank must call it. Older rank files go once the new `last.ckpt` is there."""
        step = trainer.global_step
        if step == self._saved_at:
            return
        own = self.rank_file(self.dirpath, step, trainer.global_rank)
        atomic_save(trainer.datamodule.rank_state(), own)  # type: ignore[attr-defined]
        trainer.strategy.barrier()
        trainer.save_checkpoint(self.dirpath / "last.ckpt")
        self._saved_at = step
        for stale in self.dirpath.glob(f"step=*-rank={trainer.global_rank}.pt"):
            if stale != own:
                stale.unlink(missing_ok=True)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # A stop is saved here, within the epoch: after it, Lightning would call the unfinished epoch complete.
        stops = trainer.should_stop or trainer.global_step == trainer.max_steps
        if stops or trainer.global_step % self.every_n_updates == 0:
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save(trainer)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.ckpt_path is None or not hasattr(trainer.datamodule, "load_rank_state"):  # type: ignore[attr-defined]
            return
        step, world = checkpoint["global_step"], checkpoint["world_size"]
        if world != trainer.world_size:
            raise CheckpointError(
                f"{trainer.ckpt_path}: was written by {world} processes and cannot be continued by "
                f"{trainer.world_size}; set --trainer.devices={world}"
            )
        own = self.rank_file(Path(trainer.ckpt_path).parent, step, trainer.global_rank)
        trainer.datamodule.load_rank_state(safe_load(own))  # type: ignore[attr-defined]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["world_size"] = trainer.world_size
