"""What a reader of a report must know before reading: what is missing, short, or of few seeds."""

from collections.abc import Iterator, Sequence

import pandas as pd

from dqs_lightning.cli.report.measure import Report

FEW_SEEDS = 5
SHOWN = 6


def notes_on(report: Report) -> list[str]:
    """Return notes of one sentence or two each."""
    notes = list(_on_runs(report))
    for frames in report.frames:
        notes += _on_frames(report, frames)
    empty = [task for task in report.scores["task"].unique() if task not in set(report.published["task"])]
    if empty and len(report.published):
        notes.append(f"No published return to draw at the frames of these runs: {', '.join(empty)}.")
    best, most = report.points["return"].max(), report.max_return
    if best > most:
        notes.append(f"Returns go up to {best:g}, above --max-return={most:g}, by which the comparison divides them.")
    elif best < 0.02 * most:
        notes.append(f"Returns go up to {best:g} only; the comparison divides them by --max-return={most:g}.")
    return notes


def _named(table: pd.DataFrame) -> pd.Series:
    return table["method"] + " on " + table["task"]


def _on_runs(report: Report) -> Iterator[str]:
    runs = pd.DataFrame(report.runs)
    groups = runs.groupby(_named(runs), sort=False)
    counts, commits = groups.size(), groups["commit"].nunique()
    if (counts == 1).any():
        yield f"One seed only, so no interval over seeds: {_some(counts.index[counts == 1])}."
    if counts.between(2, FEW_SEEDS - 1).any():
        yield f"Fewer than {FEW_SEEDS} seeds a method and task: intervals are wide, and differences uncertain."
    unfinished = [f"{run.run} ({run.state})" for run in report.runs if run.state not in ("", "done")]
    if unfinished:
        yield f"Not done, and counted as far as they came: {_some(unfinished)}."
    if report.unscored:
        yield f"In the sweep, but not evaluated yet, so not counted: {_some(report.unscored)}."
    if (commits > 1).any():  # settings are compared where the runs are read; what the code did with them is not
        yield f"Seeds of one method that were trained by several commits: {_some(commits.index[commits > 1])}."
    last = [run.rows[-1][0] for run in report.runs]
    if not report.chosen and min(last) < max(last):
        shortest = report.runs[last.index(min(last))].run
        yield (
            f"Tables are at {report.frames[0]:,} frames, the last that all runs reached ({shortest} ends there; the "
            f"longest run has {max(last):,.0f}). --frames chooses others."
        )


def _on_frames(report: Report, frames: int) -> Iterator[str]:
    points, all_seeds = report.points[report.points["frames"] == frames], _named(pd.DataFrame(report.runs))
    there = _named(points).value_counts()
    counts = all_seeds.value_counts(sort=False)
    short = [
        f"{name} ({there.get(name, 0)} of {count} seeds)"
        for name, count in counts.items()
        if there.get(name, 0) < count
    ]
    if short:
        yield f"Not all seeds were evaluated around {frames:,} frames: {_some(short)}."
    over = next((one for one in report.aggregates if one.frames == frames), None)
    if over is None:
        yield f"At {frames:,} frames all methods and {report.baseline} share no task: nothing is compared."
        return
    left = [task for task in points["task"].unique() if task not in over.tasks]
    if left:
        yield f"At {frames:,} frames not compared over tasks, since a method lacks them: {', '.join(left)}."
    sizes = points[points["task"].isin(over.tasks)].groupby(["task", "method"], sort=False).size()
    used = over.table["seeds"]
    cut = [
        f"{method} on {task} ({used[method]} of {size})"
        for (task, method), size in sizes.items()
        if size > used[method]
    ]
    if cut:
        yield f"Compared over tasks by the first seeds only, as many as each task has: {', '.join(cut)}."


def _some(names: Sequence[str]) -> str:
    """Return the first few names, and how many there are beyond them; the tables hold them all."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
