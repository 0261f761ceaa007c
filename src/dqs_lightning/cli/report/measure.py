"""Checks the choices of a report's command line against its runs, and computes what it contains."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from dqs_lightning.cli.errors import InputError, printable, refusing
from dqs_lightning.cli.provenance import without_place
from dqs_lightning.cli.report.files import MANIFEST, SCORES, Run, states
from dqs_lightning.cli.report.published import choose
from dqs_lightning.cli.report.runs import find_files
from dqs_lightning.cli.report.statistics import Aggregate, aggregate, at, tidy

MOST = 200
"""Tasks, and methods, of one report."""
BATCH = 64
CHECKPOINT = "checkpoints/last.ckpt"

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
    published: pd.DataFrame  # rows to draw, see `published.choose`
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
        published=choose(options.published, scores.groupby("task", sort=False)["frames"].max().to_dict()),
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
