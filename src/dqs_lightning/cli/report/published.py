"""Published returns to compare with: `dmc_published.csv`, whose first lines say where its numbers come from."""

import io
from collections.abc import Mapping, Sequence
from importlib.resources import files

import pandas as pd

from dqs_lightning.cli.errors import InputError, did_you_mean

DEFAULT = ("SAC (TD-MPC2 repo)", "TD-MPC2", "SimbaV2 UTD 1")
"""Drawn by default: all three at half an update a frame."""
COLUMNS = {"updates_per_env_frame": "updates_per_frame", "env_frames": "frames"}
COLUMNS |= {"return_mean": "mean", "return_std": "std"}


def read_published() -> tuple[pd.DataFrame, str]:
    """Reads all published rows, and where they come from.

    updates_per_frame is NaN where it was not given; task is of the DeepMind Control Suite, with hyphens only; mean and
    std are over seeds; label is the method with its action repeat and updates.
    """
    text = (files("dqs_lightning.cli.report") / "dmc_published.csv").read_text()
    source = " ".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    table = pd.read_csv(io.StringIO(text), comment="#").rename(columns=COLUMNS)
    updates = table["updates_per_frame"].map("{:g} updates/frame".format, na_action="ignore")
    repeat = table["action_repeat"].astype(str)
    table["label"] = table["method"] + ", action repeat " + repeat + ", " + updates.fillna("updates not given")
    return table, source


def suite_name(task: str) -> str:
    """Returns a task of ours as the published tables call it: ball_in_cup-catch is cup-catch."""
    return task.replace("_", "-").replace("ball-in-cup-", "cup-")


def choose(names: Sequence[str] | None, last_frames: Mapping[str, float]) -> pd.DataFrame:
    """Selects the published rows of some methods at frames that our runs reached, by our task names.

    None selects `DEFAULT`, ["none"] no rows. `last_frames` is the last frame of any run, by task.
    """
    table, _ = read_published()
    known = list(table["method"].unique())
    chosen = list(DEFAULT) if names is None else [] if list(names) == ["none"] else list(names)
    for name in chosen:
        if name not in known:
            allowed = f"allowed are none, {', '.join(known)}{did_you_mean(name, known)}"
            raise InputError(f"--published={name}: no such method; {allowed}")
    rows = table[table["method"].isin(chosen)]
    ours = [
        rows[(rows["task"] == suite_name(task)) & (rows["frames"] <= last)].assign(task=task)
        for task, last in last_frames.items()
    ]
    return pd.concat(ours, ignore_index=True)
