"""Published returns to compare with: `dmc_published.csv`, whose first lines say where its numbers come from."""

import io
from collections.abc import Mapping, Sequence
from importlib.resources import files

import pandas as pd

from dqs_lightning.cli.errors import InputError
from dqs_lightning.registry import nearest

DEFAULT = ("SAC (TD-MPC2 repo)", "TD-MPC2", "SimbaV2 UTD 1")
"""Drawn by default: all three at half an update a frame."""


def read_published() -> tuple[pd.DataFrame, str]:
    """Read all rows, and where they come from.

    Returns:
        Columns method, action_repeat, updates_per_frame (NaN where it was not given), task (of the DeepMind Control
        Suite, with hyphens only), frames, mean and std (of the return over seeds), seeds, and label (the method with
        its action repeat and updates); and the source.
    """
    lines = (files("dqs_lightning.cli.report") / "dmc_published.csv").read_text().splitlines()
    source = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    table = pd.read_csv(io.StringIO("\n".join(line for line in lines if not line.startswith("#"))))
    table = table.rename(
        columns={"updates_per_env_frame": "updates_per_frame", "env_frames": "frames"}
        | {"return_mean": "mean", "return_std": "std"}
    )
    updates = table["updates_per_frame"].map("{:g} updates/frame".format, na_action="ignore")
    repeat = table["action_repeat"].astype(str)
    table["label"] = table["method"] + ", action repeat " + repeat + ", " + updates.fillna("updates not given")
    return table, source


def suite_name(task: str) -> str:
    """Return a task of ours as the published tables call it: ball_in_cup-catch is cup-catch."""
    return task.replace("_", "-").replace("ball-in-cup-", "cup-")


def choose(names: Sequence[str] | None, last_frames: Mapping[str, float]) -> pd.DataFrame:
    """Select the published rows to draw: those of some methods, at frames that our runs reached, named as ours.

    Args:
        names: methods; None: `DEFAULT`; ["none"]: no rows.
        last_frames: the last frame of any run, by task.

    Raises:
        InputError: when a method is not in the table.
    """
    table, _ = read_published()
    known = list(table["method"].unique())
    chosen = list(DEFAULT) if names is None else [] if list(names) == ["none"] else list(names)
    for name in chosen:
        if name not in known:
            found = nearest(name, known)
            hint = f"\nDid you mean {found}?" if found else ""
            raise InputError(f"--published={name}: no such method; allowed are none, {', '.join(known)}{hint}")
    ours = pd.DataFrame({"ours": list(last_frames), "last": list(last_frames.values())})
    ours["task"] = ours["ours"].map(suite_name)
    rows = table[table["method"].isin(chosen)].merge(ours, on="task")
    rows = rows[rows["frames"] <= rows["last"]]
    return rows.assign(task=rows["ours"]).drop(columns=["ours", "last"])
