"""Counts the goals that the policy reaches and the paths to them, and draws the paths as it learns."""

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dqs_callbacks.periodic import Periodic, PeriodicRows
from dqs_callbacks.pictures import COLOURS, publish
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

Panel = tuple[int, Tensor, Tensor]
"""Frames, positions [T + 1, n, 2], goals [n]."""
NOWHERE = "#999999"


def navigation_of(environment: Environment, asking: object) -> Navigation:
    """The environment, if it has goals; otherwise a MisconfigurationException that names it and the callback."""
    if not isinstance(environment, Navigation):
        known = ", ".join(components(Navigation))
        raise MisconfigurationException(
            f"trainer.callbacks: {type(asking).__name__} needs an environment with goals ({known}), "
            f"not data.environment={type(environment).__name__} ({environment.name})"
        )
    return environment


def rolled_out(
    trainer: L.Trainer, agent: Agent, seed: int, callback: "GoalCoverage | Trajectories"
) -> tuple[Navigation, Rollouts]:
    """The environment, and one episode each of the callback's `rollouts` members, in environments of its own."""
    data = OnlineData.of(trainer)
    navigation = navigation_of(data.environment, callback)
    with closing(data.make_environment(callback.rollouts, seed)) as env:
        return navigation, roll_out(env, policy_of(agent, callback.deterministic))


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
        navigation, found = rolled_out(trainer, agent, seed, self)
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


class Trajectories(Periodic):
    """Draws walls, goals and paths, coloured by the goal at which they end, into pictures/trajectories.png.

    One panel for each measurement that is kept, in the order of training (see `Periodic`).

    Args:
        every_frames: environment frames between measurements; >= 1.
        rollouts: paths in each panel; >= 1.
        panels: as many are kept, evenly spread over the run, the first and the last among them; >= 1.
        deterministic: use the noise-free policy.
    """

    @checked
    def __init__(
        self, every_frames: Count = 10_000, rollouts: Count = 100, panels: Count = 3, deterministic: bool = False
    ) -> None:
        super().__init__(every_frames)
        self.rollouts, self.panels, self.deterministic = rollouts, panels, deterministic
        self._kept: list[Panel] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        navigation_of(OnlineData.of(trainer).environment, self)

    def measure(self, trainer: L.Trainer, agent: Agent, seed: int) -> None:
        navigation, found = rolled_out(trainer, agent, seed, self)
        panel = OnlineData.of(trainer).env_frames, found.position, found.goal
        self._kept = thinned([*self._kept, panel], self.panels)
        publish(trainer, "trajectories", lambda: draw(navigation, self._kept))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "kept": self._kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._kept = state_dict["kept"]


def thinned(panels: list[Panel], most: int) -> list[Panel]:
    """Keeps `most` of the panels, the first and the last among them: removes those that leave the smallest gaps."""
    while len(panels) > most:
        gaps = [after[0] - before[0] for before, after in zip(panels, panels[2:], strict=False)]
        del panels[1 + gaps.index(min(gaps)) if gaps else 0]
    return panels


def draw(navigation: Navigation, panels: Sequence[Panel]) -> Figure:
    """One panel beside the other."""
    figure = Figure(figsize=(2.9 * len(panels), 3.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    for axis, (frames, position, goal) in zip(axes, panels, strict=True):
        draw_plane(axis, navigation)
        draw_paths(axis, position, goal)
        shares = goal_shares(goal, len(navigation.goals))
        axis.set_title(
            f"{frames:,} frames\nsuccess {float(shares.sum()):.0%}, entropy of goals {entropy_of(shares):.2f} nats"
        )
        axis.set_xlabel("x")
    axes[0].set_ylabel("y")
    return figure


def colour_of(goal: int) -> str:
    """A goal's colour; -1 is none."""
    return NOWHERE if goal < 0 else COLOURS[goal % len(COLOURS)]


def draw_plane(axis: Axes, navigation: Navigation) -> None:
    """Walls and goals."""
    x_low, x_high, y_low, y_high = navigation.extent
    axis.set(xlim=(x_low, x_high), ylim=(y_low, y_high), aspect="equal")
    for x, x_end, y, y_end in navigation.blocks:
        axis.add_patch(Rectangle((x, y), x_end - x, y_end - y, facecolor="0.82", edgecolor="none", zorder=0))
    axis.add_collection(LineCollection([[w[:2], w[2:]] for w in navigation.walls], colors="0.15", linewidths=2.5))
    for index, center in enumerate(navigation.goals):
        style: Any = {"facecolor": colour_of(index), "alpha": 0.25, "edgecolor": "none", "zorder": 1}
        axis.add_patch(Circle((center[0], center[1]), navigation.goal_radius, **style))
    axis.spines[:].set_visible(True)


def draw_paths(axis: Axes, position: Tensor, goal: Tensor) -> None:
    """Paths [T + 1, n, 2], each in the colour of its goal; those that reach no goal are drawn first and dashed."""
    for index in torch.argsort(goal).tolist():
        reached = int(goal[index])
        style = "-" if reached >= 0 else (0, (2, 1.5))
        axis.plot(*position[:, index].T.tolist(), color=colour_of(reached), linestyle=style, linewidth=0.7, alpha=0.6)
    (x, y), (x_start, y_start) = position[-1].T.tolist(), position[0].mean(0).tolist()
    axis.scatter(x, y, s=7, c=[colour_of(int(index)) for index in goal], linewidths=0, zorder=3)
    axis.scatter([x_start], [y_start], s=24, marker="s", c="0.15", zorder=3)
