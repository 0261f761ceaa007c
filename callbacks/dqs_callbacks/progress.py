"""The progress of a run: a bar whose unit is the environment frame, and logged speeds."""

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dqs_lightning.agents import Agent
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.ranges import Positive, checked


class FramesProgress(ProgressBar):
    """Shows frames, return, updates per second and the time left; without a terminal it prints lines.

    The first line is printed when training starts.

    Args:
        refresh_s: seconds between two updates of the bar on a terminal; > 0.
        line_s: seconds between two lines elsewhere; > 0.
    """

    @checked
    def __init__(self, refresh_s: Positive = 0.5, line_s: Positive = 60.0) -> None:
        super().__init__()
        self.refresh_s, self.line_s = refresh_s, line_s
        self._enabled = True
        self._console = Console(stderr=True)
        self._progress: Progress | None = None
        self._shown = self._start = 0.0
        self._mark = (0.0, 0)
        self._frames_at_start = 0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = self._shown = time.monotonic()
        self._mark = (self._start, trainer.global_step)
        data = OnlineData.of(trainer)
        self._frames_at_start = data.env_frames
        if not self._enabled or not trainer.is_global_zero:
            return
        if not self._console.is_terminal:
            text = f"{data.env_frames:,}/{data.total_frames:,} frames  {data.environment.name}  training starts"
            self._console.print(text, highlight=False)
        else:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("frames  {task.fields[rate]}  return {task.fields[score]}"),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=self._console)
            self._progress.add_task(
                data.environment.name, total=data.total_frames, completed=data.env_frames, rate="", score="-"
            )
            self._progress.start()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        now = time.monotonic()
        interval = self.refresh_s if self._progress else self.line_s
        if not self._enabled or not trainer.is_global_zero or now - self._shown < interval:
            return
        self._shown = now
        data = OnlineData.of(trainer)
        then, updates = self._mark
        rate = f"{(trainer.global_step - updates) / max(now - then, 1e-9):.1f} updates/s"
        self._mark = (now, trainer.global_step)
        found = trainer.callback_metrics.get("eval/return", data.train_return)
        score = "-" if found is None else f"{float(found):.1f}"
        if self._progress:
            self._progress.update(self._progress.task_ids[0], completed=data.env_frames, rate=rate, score=score)
            return
        done, total = data.env_frames, data.total_frames
        left = (now - self._start) * (total - done) / max(done - self._frames_at_start, 1)
        left_text = f"{int(left) // 60}:{int(left) % 60:02d}"
        self._console.print(f"{done:,}/{total:,} frames  {rate}  return {score}  {left_text} left", highlight=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._progress:
            self._progress.update(self._progress.task_ids[0], completed=OnlineData.of(trainer).env_frames)
            self._progress.stop()
            self._progress = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)


class Throughput(Callback):
    """Logs `time/env_fps` (frames of all ranks), `time/updates_per_s` and `train/return` at the log interval.

    Both rates are over the time since the last row, everything included. With `data.workers`, `time/worker_restarts`
    is the number of workers that were replaced so far on this rank. With actors, `time/policy_age` is the largest age,
    in updates, of the weights that collected the transitions since the last row, and `time/lost_actors` the number of
    actors that were replaced so far. Where the environment is a simulation that may
    diverge, `env/physics_errors` is its `physics_errors` so far, of training and evaluation.
    """

    def __init__(self) -> None:
        self._mark = (0.0, 0, 0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark = (time.monotonic(), OnlineData.of(trainer).env_frames, trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by a connector
        if not isinstance(pl_module, Agent) or trainer.global_step % every:
            return
        data, before = OnlineData.of(trainer), self._mark
        self._mark = (time.monotonic(), data.env_frames, trainer.global_step)
        seconds, frames, updates = (now - then for now, then in zip(self._mark, before, strict=True))
        seconds = max(seconds, 1e-9)
        metrics = {"time/env_fps": frames / seconds, "time/updates_per_s": updates / seconds}
        if data.collector == "Ray":
            metrics |= {"time/policy_age": data.policy_age, "time/lost_actors": data.lost_actors}
            data.policy_age = 0
        if data.workers:
            metrics["time/worker_restarts"] = float(data.restarts.used)
        if data.environment.physics_errors is not None:
            metrics["env/physics_errors"] = float(data.environment.physics_errors)
        if data.train_return is not None:
            metrics["train/return"] = data.train_return
        pl_module.log_metrics(metrics)
