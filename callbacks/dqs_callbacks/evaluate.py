"""Evaluation in environments of its own, written to `scores.jsonl`, the loggers and the progress bar."""

import time
from contextlib import closing
from typing import Annotated, Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from dqs_callbacks.periodic import PeriodicRows
from dqs_lightning.agents import Agent
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.evaluation.returns import STEP_LIMIT, episode_returns, mean_with_interval, policy_of
from dqs_lightning.ranges import Count, at_least, checked


class Evaluate(PeriodicRows):
    """Measures the policy's return every `every_frames` frames and at the end (see `Periodic`).

    Each evaluation adds one JSON object to `scores.jsonl`: `env_frames`, `updates`, `wall_s`, `episodes`,
    `return_mean`, `return_ci95` (low, high).

    Args:
        every_frames: environment frames between evaluations; >= 1.
        episodes: episodes of each, run side by side; >= 2, since one has no interval.
        deterministic: use the noise-free policy.
        best_of: draw this many actions and take the one of highest Q; null: as the agent acts. An agent without
            Q is sampled.
        at_start: measure before the first frame too, such as the policy of another task (`StartFrom`) as it is.
        max_steps: agent steps after which an evaluation ends, with a warning, although episodes have not; >= 1.
        path: the file; null: `scores.jsonl` in the run directory.
    """

    file = "scores.jsonl"

    @checked
    def __init__(
        self,
        every_frames: Count = 10_000,
        episodes: Annotated[int, at_least(2)] = 10,
        deterministic: bool = False,
        best_of: Count | None = None,
        at_start: bool = False,
        max_steps: Count = STEP_LIMIT,
        path: str | None = None,
    ) -> None:
        super().__init__(every_frames)
        self.episodes, self.deterministic, self.best_of = episodes, deterministic, best_of
        self.at_start, self.max_steps, self.path = at_start, max_steps, path
        self._wall_s = self._clock = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if (self.best_of or 1) > 1 and getattr(type(pl_module), "q_value", None) is Agent.q_value:
            rank_zero_warn(
                f"{type(pl_module).__name__} has no Q(s, a): evaluations sample it, not best_of={self.best_of}"
            )
            self.best_of = 1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._clock = time.monotonic()
        super().on_train_start(trainer, pl_module)
        if self.at_start and trainer.ckpt_path is None:
            self.evaluate(trainer, pl_module)

    def measure(self, trainer: L.Trainer, agent: Agent, seed: int) -> None:
        policy = policy_of(agent, self.deterministic, self.best_of)
        with closing(OnlineData.of(trainer).make_environment(self.episodes, seed)) as env:
            returns = episode_returns(env, policy, step_limit=self.max_steps)
        mean, interval = mean_with_interval(returns)
        self._wall_s += time.monotonic() - self._clock
        self._clock = time.monotonic()
        row = {
            "wall_s": round(self._wall_s, 1),
            "episodes": self.episodes,
            "return_mean": round(mean, 3),
            "return_ci95": [round(bound, 3) for bound in interval],
        }
        self.add(trainer, row)
        agent.log_metrics({"eval/return": mean, "eval/return_low": interval[0], "eval/return_high": interval[1]})

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "wall_s": self._wall_s + time.monotonic() - self._clock}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._wall_s = state_dict["wall_s"]
