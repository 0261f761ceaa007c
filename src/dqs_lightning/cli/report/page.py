"""Composes the files of a report: a page that includes its pictures, tables in Markdown, pictures, and a summary."""

import base64
import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader

from dqs_lightning.cli.report.command import MADE_BY, SUMMARY
from dqs_lightning.cli.report.files import KEYS, TEXTS
from dqs_lightning.cli.report.measure import Report
from dqs_lightning.cli.report.pictures import pictures_of
from dqs_lightning.cli.report.statistics import costs, summary
from dqs_lightning.cli.report.tables import markdown, tables_of

FEW_SEEDS = 5
SHOWN = 6
"""Names that a note lists."""


def compose(report: Report) -> dict[str, bytes]:
    """Returns the files of a report by name, the summary first."""
    made = f"Made by {report.command} (dqs-lightning {version('dqs-lightning')})."
    tables, pictures, notes = tables_of(report), pictures_of(report), notes_on(report)
    loader = PackageLoader("dqs_lightning.cli", "report")
    page = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    names = {f"{key}s": list(report.scores[key].unique()) for key in ("task", "method")}
    given = {**names, "runs": report.runs, "notes": notes, "made": made, "pictures": pictures, "tables": tables}
    content = {
        "report.html": page.get_template("report.html.j2").render(given, base64=base64.b64encode).encode(),
        "table.md": "\n\n".join([*(table.markdown() for table in tables), markdown(made), ""]).encode(),
        **{picture.name: picture.content for picture in pictures},
    }
    return {SUMMARY: (json.dumps(_summary(report, notes, [SUMMARY, *content]), indent=1) + "\n").encode(), **content}


def _summary(report: Report, notes: list[str], names: list[str]) -> dict[str, Any]:
    """Returns everything in a report as plain values; a number that there is not is None."""
    return {
        "made_by": MADE_BY,
        "files": names,
        "command": report.command,
        "baseline": report.baseline,
        "max_return": report.options.max_return,
        "notes": notes,
        "scores": _rows(summary(report.points)),
        "returns": _rows(report.points),
        "cost": _rows(costs(report.scores)),
        "published": _rows(report.published),
        "decision_ms": [[*key, *times] for key, times in report.decisions.items()],
        "runs": [{name: getattr(run, name) for name in (*KEYS, *TEXTS)} for run in report.runs],
        "aggregates": [
            {"frames": one.frames, "tasks": one.tasks, "methods": _rows(one.table.reset_index(names="method"))}
            | {"profiles": {name: _rows(share.reset_index(names="level")) for name, share in one.profiles.items()}}
            for one in report.aggregates
        ],
    }


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(table.to_json(orient="records", double_precision=15))
    return rows


def notes_on(report: Report) -> list[str]:
    """Returns what a reader has to know first: what is missing, short, or of few seeds."""
    runs = pd.DataFrame(report.runs)
    all_seeds = _named(runs).value_counts(sort=False)
    notes = list(_on_runs(report, runs, all_seeds))
    for frames in report.frames:
        notes += _on_frames(report, frames, all_seeds)
    empty = [task for task in report.scores["task"].unique() if task not in set(report.published["task"])]
    if empty and len(report.published):
        notes.append(f"No published return to draw at the frames of these runs: {', '.join(empty)}.")
    best, most = report.points["return"].max(), report.options.max_return
    if best > most:
        notes.append(f"Returns go up to {best:g}, above --max-return={most:g}, by which the comparison divides them.")
    elif best < 0.02 * most:
        notes.append(f"Returns go up to {best:g} only; the comparison divides them by --max-return={most:g}.")
    return notes


def _on_runs(report: Report, runs: pd.DataFrame, seeds: pd.Series) -> Iterator[str]:
    if (seeds == 1).any():
        yield f"One seed only, so no interval over seeds: {_some(seeds.index[seeds == 1])}."
    if seeds.between(2, FEW_SEEDS - 1).any():
        yield f"Fewer than {FEW_SEEDS} seeds a method and task: intervals are wide, and differences uncertain."
    unfinished = [f"{run.run} ({run.state})" for run in report.runs if run.state not in ("", "done")]
    if unfinished:
        yield f"Not done, and counted as far as they came: {_some(unfinished)}."
    if report.unscored:
        yield f"In the sweep, but not evaluated yet, so not counted: {_some(report.unscored)}."
    commits = runs.groupby(_named(runs), sort=False)["commit"].nunique()
    if (commits > 1).any():  # settings are compared where the runs are read; what the code did with them is not
        yield f"Seeds of one method that were trained by several commits: {_some(commits.index[commits > 1])}."
    last = [run.rows[-1][0] for run in report.runs]
    if report.options.frames is None and min(last) < max(last):
        shortest = report.runs[last.index(min(last))].run
        yield (
            f"Tables are at {report.frames[0]:,} frames, the last that all runs reached ({shortest} ends there; the "
            f"longest run has {max(last):,.0f}). --frames chooses others."
        )


def _on_frames(report: Report, frames: int, seeds: pd.Series) -> Iterator[str]:
    points = report.points[report.points["frames"] == frames]
    there = _named(points).value_counts()
    counts = [(name, there.get(name, 0), count) for name, count in seeds.items()]
    if short := [f"{name} ({here} of {count} seeds)" for name, here, count in counts if here < count]:
        yield f"Not all seeds were evaluated around {frames:,} frames: {_some(short)}."
    over = next((one for one in report.aggregates if one.frames == frames), None)
    if over is None:
        yield f"At {frames:,} frames all methods and {report.baseline} share no task: nothing is compared."
        return
    if left := [task for task in points["task"].unique() if task not in over.tasks]:
        yield f"At {frames:,} frames not compared over tasks, since a method lacks them: {', '.join(left)}."
    sizes = points[points["task"].isin(over.tasks)].groupby(["task", "method"], sort=False).size()
    used = [(task, method, over.table["seeds"][method], size) for (task, method), size in sizes.items()]
    if cut := [f"{method} on {task} ({seeds} of {size})" for task, method, seeds, size in used if size > seeds]:
        yield f"Compared over tasks by the first seeds only, as many as each task has: {', '.join(cut)}."


def _named(table: pd.DataFrame) -> pd.Series:
    return table["method"] + " on " + table["task"]


def _some(names: Sequence[str]) -> str:
    """Returns the first few names, and how many there are beyond them; the tables hold them all."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
