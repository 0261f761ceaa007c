"""Evaluation in environments of its own, written to `scores.jsonl`, the loggers and the progress bar."""

import json
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng

from dqs_lightning.agents import Agent
from dqs_lightning.data import OnlineData
from dqs_lightning.evaluation import episode_returns, mean_with_interval


class Evaluate(Callback):
    """Measures the policy's return every `every_frames` frames and at the end, on rank zero.

    The random state is set aside meanwhile, so that training is the same with and without it; each evaluation has
    its own seed, which depends on the run's seed and the frame alone. Each adds one JSON object to `scores.jsonl`:
    `env_frames`, `updates`, `wall_s`, `episodes`, `return_mean`, `return_ci95` (low, high).

    Args:
        every_frames: environment frames between evaluations; >= 1.
        episodes: episodes of each, run side by side; >= 2, since one has no interval.
        deterministic: use the noise-free policy.
        best_of: draw this many actions and take the one of highest Q; null: as the agent acts.
        path: the file; null: `scores.jsonl` in the run directory.
    """

    def __init__(
        self,
        every_frames: int = 10_000,
        episodes: int = 10,
        deterministic: bool = False,
        best_of: int | None = None,
        path: str | None = None,
    ) -> None:
        for name, value, least in (("every_frames", every_frames, 1), ("episodes", episodes, 2)):
            if value < least:
                raise ValueError(f"{name}={value}: allowed is {least} or more")
        if best_of is not None and best_of < 1:
            raise ValueError(f"best_of={best_of}: allowed is 1 or more, or null")
        self.every_frames, self.episodes = every_frames, episodes
        self.deterministic, self.best_of = deterministic, best_of
        self.path = path
        self._last_frames = 0
        self._wall_s = 0.0
        self._clock = 0.0

    def _file(self, trainer: L.Trainer) -> Path:
        return Path(self.path) if self.path else Path(trainer.default_root_dir) / "scores.jsonl"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._clock = time.monotonic()
        file = self._file(trainer)
        if trainer.is_global_zero and file.exists():
            # A run that continues drops what was written after the checkpoint that it continues from.
            kept = [row for row in file.read_text().splitlines() if json.loads(row)["updates"] <= trainer.global_step]
            file.write_text("".join(f"{row}\n" for row in kept))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        frames = OnlineData.of(trainer).env_frames
        if frames // self.every_frames > self._last_frames // self.every_frames:
            self.evaluate(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        finished = OnlineData.of(trainer).env_frames >= OnlineData.of(trainer).total_frames
        if finished and self._last_frames < OnlineData.of(trainer).env_frames:
            self.evaluate(trainer, pl_module)

    def evaluate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Run the episodes now and record them; ranks other than zero go on and wait at the next update."""
        assert isinstance(pl_module, Agent)
        data = OnlineData.of(trainer)
        self._last_frames = data.env_frames
        if not trainer.is_global_zero:
            return

        def policy(observation: torch.Tensor) -> torch.Tensor:
            return pl_module.act(observation.to(pl_module.device), self.deterministic, self.best_of).cpu()

        with isolate_rng():
            seed = (torch.initial_seed() + 1_000_003 + data.env_frames) % 2**31
            torch.manual_seed(seed)
            env = data.environment.make(self.episodes, seed)
            mean, interval = mean_with_interval(episode_returns(env, policy))
            env.close(raise_if_closed=False)
        self._wall_s += time.monotonic() - self._clock
        self._clock = time.monotonic()
        row = {
            "env_frames": data.env_frames,
            "updates": trainer.global_step,
            "wall_s": round(self._wall_s, 1),
            "episodes": self.episodes,
            "return_mean": round(mean, 3),
            "return_ci95": [round(bound, 3) for bound in interval],
        }
        file = self._file(trainer)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        pl_module.write({"eval/return": mean, "eval/return_low": interval[0], "eval/return_high": interval[1]})

    def state_dict(self) -> dict[str, Any]:
        return {"last_frames": self._last_frames, "wall_s": self._wall_s + time.monotonic() - self._clock}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last_frames, self._wall_s = state_dict["last_frames"], state_dict["wall_s"]
