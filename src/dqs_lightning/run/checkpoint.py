"""The callback that keeps a run's checkpoints and continues the run from one of them."""

import contextlib
import math
import re
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from dqs_lightning.agents import Agent
from dqs_lightning.checkpoint.archive import CheckpointError, NotSavedError, atomic_save, safe_load
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.collection.loader import CollectionHook
from dqs_lightning.envs import EnvironmentFailure
from dqs_lightning.ranges import Count, checked
from dqs_lightning.run.resume import FINISHED, SETTINGS, apply_changes, changes, check_checkpoint, settings_of

ATTEMPTS = 3
"""Saves that may fail in a row before the run ends."""
RETRY_S = 1.0
"""Seconds between attempts at the last save of a run."""
DIGESTS = "rank_digests"


class RunCheckpoint(CollectionHook, Checkpoint):
    """Keeps `last.ckpt` and the ranks' own files in `dirpath`, so that the same command continues the run.

    Written every `every_n_updates` updates, at the end, when another callback stops the run, and when an environment
    fails. As a Lightning `Checkpoint` it acts after all other callbacks, so that it saves their final state. A save
    that fails, as on a full disk, leaves the previous checkpoint and is attempted again at the next save.
    `best.ckpt` is the agent of the evaluation with the highest mean return so far; it holds no replay buffer, so that
    it can be evaluated and exported, and not continued. With `Trainer.fast_dev_run` nothing is written.

    Args:
        dirpath: folder of the checkpoints; the command line sets it to the run's `checkpoints/`.
        every_n_updates: updates between two checkpoints; >= 1.
        keep: latest checkpoints that are kept; >= 1. With more than one each is also `step=<update>-frames=<N>.ckpt`,
            and can be continued in another run directory. Each has a whole replay buffer.

    Raises:
        NotSavedError: when three saves in a row fail.
    """

    @checked
    def __init__(self, dirpath: str = "checkpoints", every_n_updates: Count = 10_000, keep: Count = 1) -> None:
        self.dirpath = Path(dirpath)
        self.every_n_updates, self.keep = every_n_updates, keep
        self.best_return = -math.inf
        """Mean return of `best.ckpt`; -inf before the first evaluation."""
        self._failures = 0
        self._own: dict[Path, str] = {}  # the digest of this rank's file that `last.ckpt` names
        self._digests: list[str] = []
        self._continued = self._saved = False  # whether this process has

    @staticmethod
    def rank_file(folder: Path, step: int, frames: int, rank: int) -> Path:
        """Returns the path of a rank's own state at an update and a frame."""
        return folder / f"step={step}-frames={frames}-rank={rank}.pt"

    def _own_file(self, trainer: L.Trainer) -> Path:
        return self.rank_file(self.dirpath, trainer.global_step, OnlineData.of(trainer).env_frames, trainer.global_rank)

    def save(self, trainer: L.Trainer, last: bool = False) -> None:
        """Write a checkpoint now; every rank must call it. The `last` one of a process is attempted several times."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by a connector
            return
        for attempt in range(ATTEMPTS if last else 1):
            if attempt:
                time.sleep(RETRY_S)
            if self._save(trainer):
                self._failures = 0
                return
            self._failures += 1
            if self._failures == ATTEMPTS:
                raise NotSavedError(
                    f"{self.dirpath}: {ATTEMPTS} attempts to write a checkpoint failed; the previous one is kept"
                )

    def _save(self, trainer: L.Trainer) -> bool:
        """Write this rank's file, then `last.ckpt`; returns whether all ranks succeeded."""
        data = OnlineData.of(trainer)
        for logger in trainer.loggers:
            logger.save()
        own, error = self._own_file(trainer), None
        digest = self._own.get(own, "")
        if not digest:
            try:
                digest = atomic_save(data.rank_state(), own)
            except OSError as failed:
                error = failed
        saved = not self._failed(data, own, error) and self._save_shared(trainer, digest)
        if saved:
            self._own, self._saved = {own: digest}, True
            self._retain(trainer, own)
        elif own not in self._own:  # the checkpoint on disk does not name it
            with contextlib.suppress(OSError):
                own.unlink(missing_ok=True)
        return saved

    def _save_shared(self, trainer: L.Trainer, digest: str) -> bool:
        """Writes `last.ckpt`, with the digests of all ranks' files; returns whether it succeeded."""
        own_digest = torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8, device=trainer.strategy.root_device)
        everyone = trainer.strategy.all_gather(own_digest).reshape(trainer.world_size, -1)
        self._digests = [bytes(row.tolist()).hex() for row in everyone]  # in the order of the ranks
        return self._write(trainer, self.dirpath / "last.ckpt")

    def _write(self, trainer: L.Trainer, path: Path) -> bool:
        """Writes what all ranks share; returns whether it succeeded. Every rank must call it."""
        error = None
        try:
            trainer.save_checkpoint(path)
        except OSError as failed:
            error = failed
            trainer.strategy.barrier("Trainer.save_checkpoint")  # where the other ranks are
        return not self._failed(OnlineData.of(trainer), path, error)

    def _retain(self, trainer: L.Trainer, own: Path) -> None:
        """Keeps the latest checkpoints: a second name of `last.ckpt` where there are several, and removes the rest."""
        stem = own.name.partition("-rank=")[0]
        if self.keep > 1 and trainer.is_global_zero:
            with contextlib.suppress(OSError):  # the next one is kept
                second_name(self.dirpath / "last.ckpt", self.dirpath / f"{stem}.ckpt")
        trainer.strategy.barrier("RunCheckpoint")
        found = sorted(self.dirpath.glob("step=*.ckpt"), key=lambda path: int(re.findall(r"\d+", path.name)[0]))
        kept = {path.stem for path in found[-self.keep :]} | {stem} if self.keep > 1 else {stem}
        stale = [
            *self.dirpath.glob(f"step=*-rank={trainer.global_rank}.pt"),
            *(found if trainer.is_global_zero else ()),
        ]
        for file in stale:
            if re.sub(r"(-rank=\d+\.pt|\.ckpt)$", "", file.name) not in kept:
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        value = float(trainer.callback_metrics.get("eval/return", math.nan))
        fits = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if not fits or trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by a connector
            return
        if value > self.best_return:
            previous, self.best_return = self.best_return, value
            if not self._write(trainer, self.dirpath / "best.ckpt"):
                self.best_return = previous

    def state_dict(self) -> dict[str, Any]:
        return {"best_return": self.best_return}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_return = state_dict["best_return"]

    def _failed(self, data: OnlineData, path: Path, error: OSError | None) -> bool:
        """Whether a rank failed to write; warns of this rank's own error. Every rank must call it."""
        if error is not None:
            warnings.warn(
                f"{error.filename or path}: the checkpoint cannot be written ({error.strerror or error}); the previous "
                "one is kept",
                RuntimeWarning,
                stacklevel=2,
            )
        return bool(data.any_rank(error is not None))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # A stop is saved within the epoch: after it, Lightning counts an unfinished epoch as complete.
        last = trainer.should_stop or trainer.global_step == trainer.max_steps
        last = last or batch_idx + 1 >= trainer.num_training_batches
        if last or trainer.global_step % self.every_n_updates == 0:
            self.save(trainer, last)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the states of callbacks that have finished an evaluation which a stop at the end had interrupted."""
        if not self._continued or self._saved or not trainer.is_global_zero:
            return
        last = self.dirpath / "last.ckpt"
        checkpoint = safe_load(last)
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
        checkpoint["callbacks"].update({c.state_key: c.state_dict() for c in callbacks if c.state_dict()})
        atomic_save(checkpoint, last)

    def on_block_collected(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.should_stop:
            self.save(trainer, last=True)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        failed = isinstance(exception, EnvironmentFailure) and OnlineData.of(trainer).env_frames
        if failed and self._own_file(trainer) not in self._own:
            self.save(trainer, last=True)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        fits = trainer.training and trainer.ckpt_path is not None
        if not (fits and isinstance(trainer.datamodule, OnlineData)):  # type: ignore[attr-defined]  # set by a connector
            return
        data, source = OnlineData.of(trainer), str(trainer.ckpt_path)
        assert isinstance(pl_module, Agent)
        check_checkpoint(checkpoint, source, trainer.world_size)
        changed = changes(checkpoint[SETTINGS], settings_of(pl_module, data), source)
        apply_changes(checkpoint, pl_module, changed)
        own, digest = own_file(Path(source), checkpoint, trainer.global_rank)
        data.load_rank_state(safe_load(own, digest=digest))
        if own.parent.resolve() == self.dirpath.resolve():
            self._own, self._continued = {own: digest}, True

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        data = OnlineData.of(trainer)
        checkpoint["world_size"] = trainer.world_size
        checkpoint[DIGESTS] = self._digests
        checkpoint[SETTINGS] = settings_of(pl_module, data)
        checkpoint[FINISHED] = data.finished


def own_file(last: Path, checkpoint: dict[str, Any], rank: int) -> tuple[Path, str]:
    """The file of a rank that belongs to a `last.ckpt`, and its digest; a CheckpointError where it is missing."""
    step, frames = checkpoint["global_step"], checkpoint["env_frames"]
    own = RunCheckpoint.rank_file(last.parent, step, frames, rank)
    if not own.is_file():
        raise CheckpointError(
            f"{own}: no such file; {last.name} cannot be continued without it: use the run's last.ckpt, or take its "
            "weights into a new run with the callback StartFrom"
        )
    return own, checkpoint[DIGESTS][rank]


def second_name(path: Path, name: Path) -> None:
    """Gives a file a second name, or copies it where the file system has no hard links."""
    partial = name.with_name(f".{name.name}")
    partial.unlink(missing_ok=True)
    try:
        partial.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, partial)
    partial.replace(name)
