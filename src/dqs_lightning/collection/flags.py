"""Flags and callbacks of Lightning that online reinforcement learning cannot follow, with what to use instead."""

import sys
from collections.abc import Iterable, Iterator

import lightning as L
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from lightning.pytorch.utilities.exceptions import MisconfigurationException

NEVER = sys.maxsize
"""Value of `check_val_every_n_epoch` with which Lightning itself evaluates neither at the end nor at a stop."""
LENGTH = "a run is one epoch, whose length is data.total_frames"
CALLBACKS: dict[type[Callback], str] = {
    StochasticWeightAveraging: "averages over epochs, and a run is one; use EMAWeightAveraging",
    GradientAccumulationScheduler: "needs automatic optimization; set data.batch_size",
    BatchSizeFinder: "needs a fixed data set; set data.batch_size",
    LearningRateFinder: "needs automatic optimization; set model.actor_lr and model.critic_lr",
}
"""Callbacks that would have no effect or replace the policy by another one, with the reason."""


def check_flags(trainer: L.Trainer) -> None:
    """Raises a MisconfigurationException for the first flag or callback that would not have its documented effect."""
    for message in _refused(trainer):
        raise MisconfigurationException(message)
    check_callbacks(trainer.callbacks)  # type: ignore[attr-defined]  # set by a connector


def check_callbacks(callbacks: Iterable[Callback]) -> None:
    """Raises a MisconfigurationException for the first callback of a kind in `CALLBACKS`."""
    for callback in callbacks:
        for kind, reason in CALLBACKS.items():
            if isinstance(callback, kind):
                raise MisconfigurationException(f"callbacks: {type(callback).__name__} {reason}")


def check_interval(trainer: L.Trainer) -> None:
    """The same for the flag that decides when Lightning evaluates, where the callback `Evaluate` decides it."""
    if (interval := trainer.val_check_interval) not in (1, None):
        raise MisconfigurationException(
            f"val_check_interval={interval}: must be left out; evaluate.every_frames decides when to evaluate"
        )


def _refused(trainer: L.Trainer) -> Iterator[str]:
    if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by a connector; sets several flags
        return
    loop, clip = trainer.fit_loop, trainer.gradient_clip_val
    epochs, steps = loop.min_epochs, trainer.min_steps
    if trainer.max_epochs == 0:
        yield f"max_epochs=0: must be >= 1 or -1; {LENGTH}"
    if (epochs or 0) > 1:
        yield f"min_epochs={epochs}: must be <= 1; {LENGTH}"
    if (steps or 0) > 0:
        yield f"min_steps={steps}: must be left out; the run would not stop on a signal before it"
    if overfit := trainer.overfit_batches:  # type: ignore[attr-defined]  # set by a connector
        yield f"overfit_batches={overfit}: must be 0; batches are drawn from what has been collected"
    if every := trainer.reload_dataloaders_every_n_epochs:  # type: ignore[attr-defined]  # set by a connector
        yield f"reload_dataloaders_every_n_epochs={every}: must be 0; {LENGTH}"
    if (every := trainer.check_val_every_n_epoch) not in (None, 1, NEVER):
        yield f"check_val_every_n_epoch={every}: must be left out; {LENGTH}"
    if (number := trainer.accumulate_grad_batches) != 1:
        yield f"accumulate_grad_batches={number}: must be 1; set data.batch_size"
    if clip is not None:
        yield f"gradient_clip_val={clip}: must be left out; set model.max_grad_norm"
    for name in ("limit_test_batches", "limit_predict_batches"):
        if (value := getattr(trainer, name)) != 1:
            yield f"{name}={value}: must be left out; a run trains and evaluates only"
    if trainer.limit_val_batches not in (0, 1):
        yield f"limit_val_batches={trainer.limit_val_batches}: must be 0 or 1; set evaluate.episodes"
