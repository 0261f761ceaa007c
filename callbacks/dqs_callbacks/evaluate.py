"""Evaluation at set frames, as runs of Lightning's validation loop, with a row of `scores.jsonl` for each."""

import time
from collections.abc import Mapping
from typing import Annotated, Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from dqs_callbacks.periodic import PeriodicRows
from dqs_lightning.agents import Agent
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.collection.flags import NEVER, check_interval
from dqs_lightning.evaluation.loader import Evaluation
from dqs_lightning.evaluation.returns import mean_with_interval
from dqs_lightning.ranges import Count, Finite, at_least, checked


class Evaluate(PeriodicRows):
    """Measures the policy's return every `every_frames` frames and at the end (see `Periodic`).

    Each evaluation is a run of Lightning's validation loop, so that callbacks that depend on it work, with
    `eval/return` as the metric to monitor. It adds one JSON object to `scores.jsonl`: `env_frames`, `updates`,
    `wall_s`, `episodes`, `return_mean`, `return_ci95` (low, high). `Trainer.validate` uses the same settings.

    Each task of a `MultiTask` has so many episodes. `return_mean` is then the mean over tasks, `return_by_task` has
    that of each, and so have the metrics `eval/return/NAME`.

    Args:
        every_frames: environment frames between evaluations; >= 1.
        episodes: episodes of each, run side by side; >= 2, since one has no interval.
        deterministic: use the noise-free policy.
        best_of: draw this many actions and take the one of highest Q; null: as the agent acts. An agent without
            Q is sampled.
        at_start: measure before the first frame too, such as the policy of another task (`StartFrom`) as it is.
        max_steps: agent steps after which an evaluation ends, with a warning, although episodes have not; >= 1.
        stop_at: mean return at which the run ends; null: it ends at `data.total_frames`.
        path: the file; null: `scores.jsonl` in the run directory.
    """

    file = "scores.jsonl"
    on_all_ranks = True

    @checked
    def __init__(
        self,
        every_frames: Count = 10_000,
        episodes: Annotated[int, at_least(2)] = Evaluation.episodes,
        deterministic: bool = Evaluation.deterministic,
        best_of: Count | None = Evaluation.best_of,
        at_start: bool = False,
        max_steps: Count = Evaluation.max_steps,
        stop_at: Finite | None = None,
        path: str | None = None,
    ) -> None:
        super().__init__(every_frames)
        self.episodes, self.deterministic, self.best_of = episodes, deterministic, best_of
        self.at_start, self.max_steps, self.stop_at, self.path = at_start, max_steps, stop_at, path
        self.reached: float | None = None
        """The mean return that ended the run by `stop_at`."""
        self._wall_s = self._clock = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if (self.best_of or 1) > 1 and isinstance(pl_module, Agent) and not pl_module.has_q:
            rank_zero_warn(
                f"{type(pl_module).__name__} has no Q(s, a): evaluations sample it, not best_of={self.best_of}"
            )
            self.best_of = 1
        settings = Evaluation(self.episodes, self.deterministic, self.best_of, self.max_steps)
        OnlineData.of(trainer).evaluation = settings
        if stage == "fit":
            check_interval(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.check_val_every_n_epoch = NEVER
        self._clock = time.monotonic()
        super().on_train_start(trainer, pl_module)
        if self.at_start and trainer.ckpt_path is None:
            self.evaluate(trainer, pl_module)

    def measure(self, trainer: L.Trainer, agent: Agent, seed: int) -> None:
        validate(trainer, agent)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Mapping[str, Tensor], *_: Any
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        mean, interval = mean_with_interval(batch["return"])
        self._wall_s += time.monotonic() - self._clock
        self._clock = time.monotonic()
        if trainer.is_global_zero:
            row: dict[str, Any] = {
                "wall_s": round(self._wall_s, 1),
                "episodes": self.episodes,
                "return_mean": round(mean, 3),
                "return_ci95": [round(bound, 3) for bound in interval],
            }
            each = {name.partition("/")[2]: round(float(found.mean()), 3) for name, found in batch.items()}
            if by_task := {name: found for name, found in each.items() if name}:
                row["return_by_task"] = by_task
            self.add(trainer, row)
        if self.stop_at is not None and mean >= self.stop_at:
            self.reached, trainer.should_stop = mean, True

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "wall_s": self._wall_s + time.monotonic() - self._clock}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._wall_s = state_dict["wall_s"]


def validate(trainer: L.Trainer, agent: Agent) -> None:
    """Runs Lightning's validation loop within training, as `_TrainingEpochLoop.on_advance_end` does.

    An exception, such as that of a stop signal, leaves the trainer and the agent as they were.
    """
    loop, connector, hook = trainer.fit_loop.epoch_loop.val_loop, trainer._logger_connector, agent._current_fx_name
    first = connector._first_loop_iter
    loop.restarting = False  # an evaluation is never continued in its middle
    trainer.validating = True
    try:
        loop.run()
    except BaseException:
        agent.train()
        raise
    finally:
        trainer.training = True
        connector._first_loop_iter, agent._current_fx_name = first, hook
