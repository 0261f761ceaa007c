"""Published returns to compare with: `dmc_published.csv`, whose first lines say where its numbers come from."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from dqs_lightning.cli.errors import InputError
from dqs_lightning.registry import nearest

DEFAULT = ("SAC (TD-MPC2 repo)", "TD-MPC2", "SimbaV2 UTD 1")
"""Drawn unless others are asked for: at half an update a frame all three."""


@dataclass(frozen=True)
class Published:
    """One published number.

    Attributes:
        method: as its authors, or those who ran it, call it.
        action_repeat: environment frames for each action.
        updates_per_frame: gradient steps for each environment frame; None where it was not given.
        task: of the DeepMind Control Suite, with hyphens only.
        frames: environment frames of training.
        mean: of the return over seeds.
        std: of the return over seeds.
        seeds: how many.
    """

    method: str
    action_repeat: int
    updates_per_frame: float | None
    task: str
    frames: int
    mean: float
    std: float
    seeds: int

    @property
    def label(self) -> str:
        """The method with what it spends."""
        updates = "updates not given" if self.updates_per_frame is None else f"{self.updates_per_frame:g} updates/frame"
        return f"{self.method}, action repeat {self.action_repeat}, {updates}"


def read_published() -> tuple[list[Published], str]:
    """All rows, and where they come from."""
    lines = (files("dqs_lightning.cli.report") / "dmc_published.csv").read_text().splitlines()
    source = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return [
        Published(
            method=row["method"],
            action_repeat=int(row["action_repeat"]),
            updates_per_frame=float(row["updates_per_env_frame"]) if row["updates_per_env_frame"] else None,
            task=row["task"],
            frames=int(row["env_frames"]),
            mean=float(row["return_mean"]),
            std=float(row["return_std"]),
            seeds=int(row["seeds"]),
        )
        for row in rows
    ], source


def suite_name(task: str) -> str:
    """A task of ours as the published tables call it: ball_in_cup-catch is cup-catch."""
    return task.replace("_", "-").replace("ball-in-cup-", "cup-")


def choose(names: Sequence[str] | None, last_frames: Mapping[str, float]) -> dict[str, list[Published]]:
    """The published rows to draw, by task of ours: those of the methods at frames that our runs reached.

    Args:
        names: methods; None: `DEFAULT`; ["none"]: no rows.
        last_frames: the last frame of any run, by task.

    Raises:
        InputError: when a method is not in the table.
    """
    rows, _ = read_published()
    known = list(dict.fromkeys(row.method for row in rows))
    wanted = DEFAULT if names is None else () if list(names) == ["none"] else tuple(names)
    for name in wanted:
        if name not in known:
            found = nearest(name, known)
            hint = f"\nDid you mean {found}?" if found else ""
            raise InputError(f"--published={name}: no such method; allowed are none, {', '.join(known)}{hint}")
    return {
        task: [row for row in rows if row.method in wanted and row.task == suite_name(task) and row.frames <= last]
        for task, last in last_frames.items()
    }
