"""From runs to the files of a report: tables, pictures, the page and the summary. Nothing here writes."""

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.escape import markdown, printable
from dqs_lightning.cli.report.aggregates import Aggregate, aggregate
from dqs_lightning.cli.report.choices import Choices
from dqs_lightning.cli.report.notes import notes_on
from dqs_lightning.cli.report.page import Picture, Section, page
from dqs_lightning.cli.report.provenance import Origin, origin_of
from dqs_lightning.cli.report.published import Published, read_published
from dqs_lightning.cli.report.runs import Run, grouped
from dqs_lightning.cli.report.statistics import Axis, Cost, Groups, Score, cost, score
from dqs_lightning.cli.report.tables import Table, aggregate_table, cost_table, published_table, run_table, score_table

SUMMARY = "summary.json"
MADE_BY = "dqs-report"
AXES: tuple[tuple[Axis, str, str], ...] = (
    ("frames", "frames.png", "Return against environment frames"),
    ("updates", "updates.png", "Return against updates"),
    ("wall_s", "wall_clock.png", "Return against wall-clock time, evaluations included"),
)


@dataclass(frozen=True)
class Measured:
    """What a report says in words and numbers; `over` and `beside` are None where there is nothing to compare."""

    origins: Sequence[Origin]
    scores: Sequence[Score]
    aggregates: Sequence[Aggregate]
    costs: Sequence[Cost]
    notes: Sequence[str]
    returns: Table
    over: Table | None
    beside: Table | None
    cost: Table
    runs: Table


@dataclass(frozen=True)
class Report:
    """Contents by file name, `SUMMARY` first, and the table of returns, for the terminal."""

    files: dict[str, bytes]
    scores: Table


def measure(runs: Sequence[Run], choices: Choices) -> Measured:
    """Compute everything of a report but its pictures."""
    groups, origins = grouped(runs), [origin_of(run) for run in runs]
    scores = [
        found
        for frames in choices.frames
        for task, methods in groups.items()
        for method, members in methods.items()
        if (found := score(task, method, members, frames))
    ]
    aggregates = _aggregates(scores, choices)
    costs = [cost(task, method, members) for task, methods in groups.items() for method, members in methods.items()]
    return Measured(
        origins=origins,
        scores=scores,
        aggregates=aggregates,
        costs=costs,
        notes=notes_on(runs, origins, scores, aggregates, choices),
        returns=score_table(scores),
        over=aggregate_table(aggregates, choices.max_return) if aggregates else None,
        beside=_beside(groups, choices.published) if any(choices.published.values()) else None,
        cost=cost_table(costs, _rates(runs, origins), choices.decisions),
        runs=run_table(runs, origins),
    )


def compose(runs: Sequence[Run], choices: Choices) -> Report:
    """The whole report of some runs.

    Raises:
        InputError: when Matplotlib cannot read its settings.
    """
    try:
        importlib.import_module("matplotlib")
    except ValueError as error:
        raise InputError(f"matplotlibrc: Matplotlib cannot read its settings: {printable(error)}") from error
    groups, made = grouped(runs), f"Made by {choices.command} (dqs-lightning {version('dqs-lightning')})."
    found = measure(runs, choices)
    sections = [Section("Learning curves", _curves(runs, choices.published))]
    if found.over:
        pictures = _over_tasks(runs, found.aggregates[-1], choices.max_return)
        sections.append(Section("Over tasks", [*pictures, found.over]))
    sections.append(Section("Returns", [found.returns]))
    if found.beside:
        sections.append(Section("Beside published returns", [found.beside]))
    sections += [Section("Cost", [found.cost]), Section("Runs", [found.runs])]
    parts = [part for section in sections for part in section.parts]
    tables = [part.markdown() for part in parts if isinstance(part, Table)]
    files = {
        "report.html": page(_title(groups), _counts(runs, groups), found.notes, sections, made).encode(),
        "table.md": "\n\n".join([*tables, markdown(made), ""]).encode(),
        **{part.name: part.content for part in parts if isinstance(part, Picture)},
    }
    summary = {
        "made_by": MADE_BY,
        "files": [SUMMARY, *files],
        "command": choices.command,
        "baseline": choices.baseline,
        "max_return": choices.max_return,
        "notes": found.notes,
        "scores": [asdict(one) for one in found.scores],
        "aggregates": [_plain(one) for one in found.aggregates],
        "cost": [asdict(one) for one in found.costs],
        "decision_ms": [[*key, *times] for key, times in choices.decisions.items()],
        "published": [asdict(one) for rows in choices.published.values() for one in rows],
        "runs": [
            {"run": run.shown, "task": run.task, "method": run.method, "seed": run.seed, **asdict(origin)}
            for run, origin in zip(runs, found.origins, strict=True)
        ],
    }
    content = json.dumps(summary, indent=1, allow_nan=False) + "\n"
    return Report({SUMMARY: content.encode(), **files}, found.returns)


def _aggregates(scores: Sequence[Score], choices: Choices) -> list[Aggregate]:
    """One for each of the chosen frames at which the methods share a task."""
    found = []
    for frames in choices.frames:
        returns: dict[str, dict[str, Sequence[float]]] = {}
        for one in scores:
            if one.frames == frames:
                returns.setdefault(one.method, {})[one.task] = one.returns
        if choices.baseline in returns:
            found.append(aggregate(frames, returns, choices.baseline, choices.max_return))
    return [one for one in found if one]


def _beside(groups: Groups, published: Mapping[str, Sequence[Published]]) -> Table:
    """The published rows, and every method of ours at their frames."""
    own = [
        found
        for task, rows in published.items()
        for frames in sorted({one.frames for one in rows})
        for method, members in groups[task].items()
        if (found := score(task, method, members, frames))
    ]
    return published_table(published, own, read_published()[1])


def _curves(runs: Sequence[Run], published: Mapping[str, Sequence[Published]]) -> list[Picture]:
    """The learning curves, against each axis."""
    from dqs_lightning.cli.report.pictures import draw_curves, png, style_of

    groups = grouped(runs)
    episodes = sorted({int(count) for run in runs for count in run.scores.episodes})
    of_each = str(episodes[0]) if len(episodes) == 1 else f"{episodes[0]} to {episodes[-1]}"
    caption = (
        f"Mean over seeds of the return of an evaluation, the mean of {of_each} episodes. Bands: 95 % Student interval "
        "over seeds, cut at the edge of the panel; one seed has no band. Thin lines: seeds, where a method has fewer "
        "than five and a panel at most four methods. Between evaluations returns are joined by straight lines, and a "
        "line goes as far as all of its seeds do."
    )
    marks = " Open marks: published returns, at the frames of their rows." if any(published.values()) else ""
    styles = style_of(list(dict.fromkeys(run.method for run in runs)))
    return [
        Picture(
            name,
            png(draw_curves(groups, axis, styles, published if axis == "frames" else {})),
            title,
            caption + (marks if axis == "frames" else ""),
        )
        for axis, name, title in AXES
    ]


def _over_tasks(runs: Sequence[Run], one: Aggregate, max_return: float) -> list[Picture]:
    """The pictures over tasks, at the last of the chosen frames."""
    from dqs_lightning.cli.report.pictures import draw_aggregate, draw_profiles, png, style_of

    styles = style_of(list(dict.fromkeys(run.method for run in runs)))
    where = f"At {one.frames:,} frames over {', '.join(one.tasks)}; returns divided by {max_return:g}."
    band = "95 % stratified bootstrap intervals over seeds, where there are two or more (rliable)."
    return [
        Picture("aggregate.png", png(draw_aggregate(one, styles)), "Methods over tasks", f"{where} Bars: {band}"),
        Picture("profiles.png", png(draw_profiles(one, styles)), "Performance profiles", f"{where} Bands: {band}"),
    ]


def _rates(runs: Sequence[Run], origins: Sequence[Origin]) -> dict[tuple[str, str], list[float]]:
    """Logged updates a second of each seed, by task and method."""
    rates: dict[tuple[str, str], list[float]] = {(run.task, run.method): [] for run in runs}
    for run, origin in zip(runs, origins, strict=True):
        if origin.updates_per_s is not None:
            rates[run.task, run.method].append(origin.updates_per_s)
    return rates


def _title(groups: Mapping[str, Any]) -> str:
    return f"Training on {', '.join(groups)}" if len(groups) <= 3 else f"Training on {len(groups)} tasks"


def _counts(runs: Sequence[Run], groups: Mapping[str, Any]) -> str:
    methods = list(dict.fromkeys(run.method for run in runs))
    runs_, tasks = ("run" if len(runs) == 1 else "runs"), ("task" if len(groups) == 1 else "tasks")
    return f"{len(runs)} {runs_}, {len(groups)} {tasks}; methods: {', '.join(methods)}."


def _plain(one: Aggregate) -> dict[str, Any]:
    """An aggregate with lists in place of arrays."""
    lists = {
        "levels": one.levels.tolist(),
        "profiles": {method: profile.tolist() for method, profile in one.profiles.items()},
        "bands": {method: band.tolist() for method, band in one.bands.items()},
    }
    return {**asdict(one), **lists}
