"""Why a run ended before its last frame: a goal that was reached, or a limit after which it can be continued."""

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, Timer

from dqs_callbacks import Evaluate


def goal_reached(trainer: L.Trainer) -> str | None:
    """Returns the reason of a callback that ended the run because it need not go on; None where there is none."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by a connector
        if isinstance(callback, Evaluate) and callback.reached is not None:
            return f"evaluate.stop_at={callback.stop_at:g}: the mean return is {callback.reached:.1f}"
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message is not None:
            return f"EarlyStopping: {callback.stopping_reason_message}"
    return None


def limit_reached(trainer: L.Trainer) -> str | None:
    """Returns the Trainer's flag that ended the run; None where none did, such as after a stop signal."""
    if trainer.max_steps == trainer.global_step:
        return f"max_steps={trainer.max_steps}"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by a connector
        if isinstance(callback, Timer) and (callback.time_remaining() or 0.0) < 0:
            return "max_time"
    limit: int | float | None = trainer.limit_train_batches
    ended = limit != 1.0 and trainer.global_step >= trainer.num_training_batches
    return f"limit_train_batches={limit}" if ended else None
