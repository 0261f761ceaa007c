"""Checks the choices of a report's command line against its runs, and computes what it contains."""

import argparse
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

import pandas as pd

from dqs_lightning.cli.errors import InputError, did_you_mean, refusing
from dqs_lightning.cli.report.files import MANIFEST, SCORES, Run, states
from dqs_lightning.cli.report.runs import find_files
from dqs_lightning.cli.report.statistics import Aggregate, aggregate, at, tidy
from dqs_lightning.sharing.text import printable, without_place

MOST = 200
"""Tasks, and methods, of one report."""
BATCH = 64
CHECKPOINT = "checkpoints/last.ckpt"
PUBLISHED = "dmc_published.csv"
"""Published returns to compare with; its first lines say where its numbers come from."""
DRAWN = ("SAC (TD-MPC2 repo)", "TD-MPC2", "SimbaV2 UTD 1")
"""Drawn by default: all three at half an update a frame."""
COLUMNS = {"updates_per_env_frame": "updates_per_frame", "env_frames": "frames"}
COLUMNS |= {"return_mean": "mean", "return_std": "std"}

Decisions = Mapping[tuple[str, str], tuple[float, float]]
"""Median milliseconds of one decision and of `BATCH` at once, by task and method."""


@dataclass(frozen=True)
class Report:
    """What a report is about, and what is computed for it."""

    options: argparse.Namespace
    command: str  # without the places of this machine
    runs: Sequence[Run]  # by task, method and seed
    scores: pd.DataFrame  # their evaluations, see `statistics.tidy`
    frames: Sequence[int]  # of the tables
    points: pd.DataFrame  # the runs at those frames, see `statistics.at`
    baseline: str
    aggregates: Sequence[Aggregate]  # one for each of the frames at which methods can be compared
    published: pd.DataFrame  # rows to draw, see `choose_published`
    unscored: Sequence[str]  # runs of a sweep that were not evaluated once, as NAME (STATE)
    decisions: Decisions  # empty without --time-actions


def measure(runs: Sequence[Run], options: argparse.Namespace, command: Sequence[str] = ()) -> Report:
    """Checks the choices of the command line against the runs, and computes everything but the pictures."""
    scores = tidy(runs)
    methods = list(scores["method"].unique())
    for name, count in (("tasks", scores["task"].nunique()), ("methods", len(methods))):
        if count > MOST:
            raise InputError(f"RUNS: {count} {name}; a report has room for {MOST}")
    frames, baseline = choose_frames(options.frames, scores), choose_baseline(options.baseline, methods)
    points = at(scores, frames)
    compared = [aggregate(points[points["frames"] == one], baseline, options.max_return) for one in frames]
    sweeps = [(file.parent, states(file)) for path in options.runs for file in find_files(path, MANIFEST)]
    names = [(folder / name / SCORES, name, state) for folder, found in sweeps for name, state in found.items()]
    unscored = [f"{printable(name)} ({state})" for file, name, state in names if not file.is_file()]
    return Report(
        options=options,
        command=printable(without_place(command), longest=None),
        runs=runs,
        scores=scores,
        frames=frames,
        points=points,
        baseline=baseline,
        aggregates=[one for one in compared if one],
        published=choose_published(options.published, scores.groupby("task", sort=False)["frames"].max().to_dict()),
        unscored=list(dict.fromkeys(unscored)),
        decisions=time_decisions(runs, options.trust) if options.time_actions else {},
    )


def choose_frames(chosen: Sequence[int] | None, scores: pd.DataFrame) -> list[int]:
    """Returns the frames of the tables: those of `--frames`, or the last that all runs reached."""
    spans = scores.groupby(["task", "method", "seed"])["frames"].agg(["min", "max"])
    for frames in chosen or ():
        if not ((spans["min"] <= frames) & (frames <= spans["max"])).any():
            first, last = spans["min"].min(), spans["max"].max()
            raise InputError(f"--frames={frames}: no run was evaluated there; allowed is {first:.0f} to {last:.0f}")
    return sorted(set(chosen)) if chosen is not None else [int(spans["max"].min())]


def choose_baseline(chosen: str | None, methods: Sequence[str]) -> str:
    """Returns the method of `--baseline`, or SAC where it is there, or the first."""
    if chosen is not None and chosen not in methods:
        raise InputError(f"--baseline={chosen}: no such method; allowed is one of {', '.join(methods)}")
    return chosen or next((method for method in methods if method.lower() == "sac"), methods[0])


def read_published() -> tuple[pd.DataFrame, str]:
    """Reads all published rows, and where they come from.

    updates_per_frame is NaN where it was not given; task is of the DeepMind Control Suite, with hyphens only; mean and
    std are over seeds; label is the method with its action repeat and updates.
    """
    text = (files("dqs_lightning.cli.report") / PUBLISHED).read_text()
    source = " ".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    table = pd.read_csv(io.StringIO(text), comment="#").rename(columns=COLUMNS)
    updates = table["updates_per_frame"].map("{:g} updates/frame".format, na_action="ignore")
    repeat = table["action_repeat"].astype(str)
    table["label"] = table["method"] + ", action repeat " + repeat + ", " + updates.fillna("updates not given")
    return table, source


def suite_name(task: str) -> str:
    """Returns a task of ours as the published tables call it: ball_in_cup-catch is cup-catch."""
    return task.replace("_", "-").replace("ball-in-cup-", "cup-")


def choose_published(names: Sequence[str] | None, last_frames: Mapping[str, float]) -> pd.DataFrame:
    """Selects the published rows of some methods at frames that our runs reached, by our task names.

    None selects `DRAWN`, ["none"] no rows. `last_frames` is the last frame of any run, by task.
    """
    table, _ = read_published()
    known = list(table["method"].unique())
    chosen = list(DRAWN) if names is None else [] if list(names) == ["none"] else list(names)
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


def time_decisions(runs: Sequence[Run], trust: Sequence[str] = ()) -> Decisions:
    """Times the policy of each method's first seed that has a checkpoint, on one thread; policies take turns.

    Classes in a checkpoint must be of registered components or of the packages in `trust`.
    """
    there: dict[tuple[str, str], Path] = {}
    for run in runs:
        if run.folder and (file := run.folder / CHECKPOINT).is_file():
            there.setdefault((run.task, run.method), file)
    if not there:
        raise InputError(f"--time-actions: none of the runs has {CHECKPOINT}")
    import torch  # which the rest of a report does not need

    from dqs_lightning.agents import load_agent
    from dqs_lightning.checkpoint.archive import CheckpointError
    from dqs_lightning.cli.machine import latencies
    from dqs_lightning.cli.trust import restrict_imports

    restrict_imports(trust)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with refusing("--time-actions: ", CheckpointError):
            agents = [load_agent(file) for file in there.values()]
        sizes = [(agent, size) for agent in agents for size in (1, BATCH)]
        calls = [partial(agent.act, torch.randn(size, agent.observation_dim)) for agent, size in sizes]
        latencies(*calls, repeats=5)  # memory is allocated, kernels are chosen
        times = latencies(*calls)
    finally:
        torch.set_num_threads(threads)
    return dict(zip(there, zip(times[::2], times[1::2], strict=True), strict=True))
