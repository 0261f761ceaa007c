"""Counts the goals that the policy reaches, and the paths to them."""

from contextlib import closing
from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console
from rich.table import Table

from dqs_callbacks.periodic import PeriodicRows
from dqs_lightning.agents import Agent
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.envs import Environment, Navigation
from dqs_lightning.envs.mixture import mmd
from dqs_lightning.evaluation.goal_coverage import Rollouts, count_paths, entropy_of, goal_shares, path_words, roll_out
from dqs_lightning.evaluation.returns import policy_of
from dqs_lightning.ranges import Count, checked
from dqs_lightning.registry import components

EXACT = 2000
"""Samples of the distribution with which the ends of episodes are compared."""


def navigation_of(environment: Environment, asking: object) -> Navigation:
    """The environment, if it has goals; otherwise a MisconfigurationException that names it and the callback."""
    if not isinstance(environment, Navigation):
        known = ", ".join(components(Navigation))
        raise MisconfigurationException(
            f"trainer.callbacks: {type(asking).__name__} needs an environment with goals ({known}), "
            f"not data.environment={type(environment).__name__} ({environment.name})"
        )
    return environment


def rolled_out(data: OnlineData, agent: Agent, num: int, seed: int, deterministic: bool) -> Rollouts:
    """One episode each of num members, in environments of its own."""
    with closing(data.make_environment(num, seed)) as env:
        return roll_out(env, policy_of(agent, deterministic))


class GoalCoverage(PeriodicRows):
    """Counts the goals that the policy reaches, every `every_frames` frames and at the end (see `Periodic`).

    Logs `eval/success` (share of the rollouts that end at a goal), `eval/goal_entropy` (of the goals among those, in
    nats; at most the log of their number), `eval/goals` (goals reached at all) and `eval/paths` (ways of reaching a
    goal that obstacles separate); where the distribution at which episodes should end is known, `eval/mmd`, the
    squared maximum mean discrepancy of the ends from it. Each count adds one JSON object to `goals.jsonl`:
    `env_frames`, `updates`, `rollouts`, these, and `shares` (of all rollouts, one a goal). The last one is printed as a
    table.

    Args:
        every_frames: environment frames between counts; >= 1.
        rollouts: episodes of each, run side by side; >= 1.
        deterministic: use the noise-free policy.
    """

    file = "goals.jsonl"

    @checked
    def __init__(self, every_frames: Count = 10_000, rollouts: Count = 100, deterministic: bool = False) -> None:
        super().__init__(every_frames)
        self.rollouts, self.deterministic = rollouts, deterministic
        self._row: dict[str, Any] | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        navigation_of(OnlineData.of(trainer).environment, self)

    def measure(self, trainer: L.Trainer, agent: Agent, seed: int) -> None:
        data = OnlineData.of(trainer)
        navigation = navigation_of(data.environment, self)
        found = rolled_out(data, agent, self.rollouts, seed, self.deterministic)
        shares = goal_shares(found.goal, len(navigation.goals))
        metrics: dict[str, float] = {
            "success": float(shares.sum()),
            "goal_entropy": entropy_of(shares),
            "goals": float((shares > 0).sum()),
            "paths": float(count_paths(path_words(found.position, navigation.obstacles), found.goal)),
        }
        if (exact := navigation.samples(EXACT)) is not None and self.rollouts > 1:
            metrics["mmd"] = mmd(found.position[-1], exact)
        rounded = {name: round(value, 4) for name, value in metrics.items()}
        row = {"rollouts": self.rollouts, **rounded, "shares": [round(share, 4) for share in shares.tolist()]}
        self._row = self.add(trainer, row)
        agent.log_metrics({f"eval/{name}": value for name, value in metrics.items()})

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if trainer.is_global_zero and self._row is not None:
            Console().print(table(self._row, navigation_of(OnlineData.of(trainer).environment, self)))


def table(row: dict[str, Any], navigation: Navigation) -> Table:
    """A row of `goals.jsonl` for people."""
    shown = Table(title=f"{navigation.name}: goals of {row['rollouts']} rollouts at {row['env_frames']:,} frames")
    shown.add_column("goal")
    shown.add_column("share", justify="right")
    shown.add_column("")
    for (x, y), share in zip(navigation.goals, row["shares"], strict=True):
        if share or len(row["shares"]) <= 10:
            shown.add_row(f"({x:g}, {y:g})", f"{share:.0%}", "█" * round(30 * share))
    shown.add_section()
    shown.add_row("success", f"{row['success']:.0%}", f"entropy of goals {row['goal_entropy']:.2f} nats")
    shown.add_row("goals", f"{row['goals']:g}", f"of {len(row['shares'])}")
    shown.add_row("paths", f"{row['paths']:g}", "that walls set apart")
    if "mmd" in row:
        shown.add_row("MMD", f"{row['mmd']:.3f}", "squared, between the ends and the known distribution")
    return shown
