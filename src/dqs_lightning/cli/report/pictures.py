"""The pictures of a report. A method has one colour in all of them; published returns are open marks."""

import io
import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from dqs_callbacks.pictures import COLOURS, DPI
from dqs_lightning.cli.escape import drawable
from dqs_lightning.cli.report.aggregates import Aggregate, Estimate
from dqs_lightning.cli.report.published import Published
from dqs_lightning.cli.report.runs import Run
from dqs_lightning.cli.report.statistics import Axis, Groups, along, curve

LINES = ("-", "--", ":", "-.")
MARKS = ("s", "^", "D", "v", "P", "X", "o", "<", ">", "p", "h", "*")
Styles = Mapping[str, tuple[str, str]]
"""Colour and line by method."""
LABELS: dict[Axis, str] = {"frames": "environment frames", "updates": "updates", "wall_s": "wall-clock time"}
UNITS = ((3 * 3600, 3600.0, "hours"), (300, 60.0, "minutes"), (0, 1.0, "seconds"))
"""Of time: from so many seconds on, seconds of one, name."""
FEW_POINTS = 16
"""Lines of fewer points show them."""
FEW_SEEDS = 5
"""Fewer are drawn one by one as well: the band of two or three is as wide as the panel."""
FEW_METHODS = 4
"""With more of them in a panel bands are fainter, and seeds are not drawn one by one."""


def style_of(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and line of each method."""
    order = (*COLOURS[:6], COLOURS[7])  # without yellow, which is faint on white
    return {
        method: (order[index % len(order)], LINES[index // len(order) % len(LINES)])
        for index, method in enumerate(methods)
    }


def draw_curves(groups: Groups, axis: Axis, styles: Styles, published: Mapping[str, Sequence[Published]]) -> Figure:
    """One panel a task, one line a method, with its band; published returns as marks.

    Args:
        groups: runs by task and method.
        axis: what the returns are drawn against.
        styles: of all methods of the report, so that each keeps its own in every picture.
        published: by task; empty for any axis but frames.
    """
    methods = [method for method in styles if any(method in by_method for by_method in groups.values())]
    names = [drawable(method) for method in methods]
    labels = list(dict.fromkeys(one.label for rows in published.values() for one in rows))
    columns = min(len(groups), 3)
    rows = math.ceil(len(groups) / columns)
    width = 5.0 if columns == 1 else 2.9 * columns
    texts = [f"published: {label}" for label in labels]
    below, above = _per_row(names, width), _per_row(texts, width)
    lines = math.ceil(len(methods) / below) + math.ceil(len(texts) / above)
    height = (2.7 if columns == 1 else 2.2) * rows + 0.19 * lines + 0.2
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    found: dict[str, Artist] = {}
    for panel, (task, by_method) in zip(panels, groups.items(), strict=False):
        panel.set_title(drawable(task))
        found |= _draw_lines(panel, by_method, axis, styles)
        found |= _draw_marks(panel, published.get(task, []), labels)
        _limit(panel, by_method, published.get(task, []))
    for panel in panels[len(groups) :]:
        panel.set_axis_off()
    for panel in panels[::columns]:
        panel.set_ylabel("return of an episode")
    drawn = [found[method] for method in methods]
    figure.legend(drawn, names, loc="outside lower center", ncols=below, frameon=False)
    if labels:
        marks = [found[label] for label in labels]
        figure.legend(marks, texts, loc="outside upper center", ncols=above, frameon=False)
    return figure


def _per_row(texts: Sequence[str], width: float) -> int:
    """Entries of a legend side by side in so many inches: 0.06 a letter and half of one for the line."""
    longest = max((len(text) for text in texts), default=0)
    return max(min(int(width // (0.5 + 0.06 * longest)), len(texts)), 1)


def _draw_lines(panel: Axes, by_method: Mapping[str, Sequence[Run]], axis: Axis, styles: Styles) -> dict[str, Artist]:
    """Means and bands of a task's methods, and the axis below them; returns the lines for the legend."""
    scale, name = 1.0, LABELS[axis]
    if axis == "wall_s":
        longest = max(float(run.scores.wall_s[-1]) for runs in by_method.values() for run in runs)
        scale, unit = next((scale, unit) for least, scale, unit in UNITS if longest >= least)
        name = f"{name} ({unit})"
    else:
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.set_xlabel(name)
    found: dict[str, Artist] = {}
    alpha = 0.18 if len(by_method) <= FEW_METHODS else 0.09
    for method, runs in by_method.items():
        line, (colour, dashes) = curve(runs, axis), styles[method]
        dot = "." if len(line.x) < FEW_POINTS else ""
        found[method] = panel.plot(line.x / scale, line.mean, dashes, color=colour, marker=dot, linewidth=1.5)[0]
        for run in runs if 1 < len(runs) < FEW_SEEDS and len(by_method) <= FEW_METHODS else []:
            x, returns = along(run.scores, axis)
            panel.plot(x / scale, returns, dashes, color=colour, linewidth=0.6, alpha=0.6)
        if line.low is not None and line.high is not None:
            panel.fill_between(line.x / scale, line.low, line.high, color=colour, alpha=alpha, linewidth=0)
    return found


def _draw_marks(panel: Axes, published: Sequence[Published], labels: Sequence[str]) -> dict[str, Artist]:
    """An open mark for each published return; returns the marks for the legend."""
    return {
        one.label: panel.plot(
            one.frames, one.mean, MARKS[labels.index(one.label) % len(MARKS)], color="0.25", fillstyle="none",
            markersize=5.5, clip_on=False, zorder=3,
        )[0]
        for one in published
    }  # fmt: skip


def _limit(panel: Axes, by_method: Mapping[str, Sequence[Run]], published: Sequence[Published]) -> None:
    """The axis holds all seeds and marks; a band of few seeds would stretch it many times."""
    returns = np.concatenate([run.scores.returns for runs in by_method.values() for run in runs])
    low = min(float(returns.min()), 0.0)
    high = max(float(returns.max()), *(one.mean for one in published), low + 1e-9 * max(1.0, -low))
    room = 0.06 * (high - low)
    panel.set_ylim(low if low == 0 else low - room, high + room)
    panel.set_xlim(left=0)
    panel.grid(alpha=0.3)


def draw_aggregate(aggregate: Aggregate, styles: Styles) -> Figure:
    """IQM, optimality gap and probability of improvement, with their intervals."""
    methods = list(aggregate.iqm)
    panels: list[tuple[str, dict[str, Estimate]]] = [
        ("IQM of the normalised return", aggregate.iqm),
        ("optimality gap", aggregate.gap),
    ]
    if aggregate.improvement:
        panels.append((f"P(better than {drawable(aggregate.baseline)})", aggregate.improvement))
    figure = Figure(figsize=(2.6 * len(panels) + 0.6, 0.75 + 0.28 * len(methods)), layout="constrained")
    for panel, (name, estimates) in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
        for place, method in enumerate(methods):
            if method not in estimates:
                continue
            estimate, colour = estimates[method], styles[method][0]
            if estimate.interval:
                panel.hlines(place, *estimate.interval, color=colour, linewidth=7, alpha=0.35)
            panel.plot(estimate.value, place, "o", color=colour, markersize=5)
        panel.set_yticks(range(len(methods)), [drawable(method) for method in methods])
        panel.set_ylim(len(methods) - 0.5, -0.5)
        panel.set_xlabel(name)
        panel.grid(axis="x", alpha=0.3)
        panel.xaxis.set_major_locator(MaxNLocator(4))
        if estimates is aggregate.improvement:
            panel.axvline(0.5, color="0.4", linewidth=1, linestyle="--")
            panel.set(xlim=(-0.04, 1.04), xticks=(0, 0.25, 0.5, 0.75, 1))
    return figure


def draw_profiles(aggregate: Aggregate, styles: Styles) -> Figure:
    """Share of seeds and tasks above each return."""
    figure = Figure(figsize=(5.0, 3.0), layout="constrained")
    panel = figure.subplots()
    alpha = 0.18 if len(aggregate.profiles) <= FEW_METHODS else 0.09
    for method, profile in aggregate.profiles.items():
        colour, dashes = styles[method]
        panel.plot(
            aggregate.levels, profile, dashes, color=colour, linewidth=1.5, label=drawable(method),
            drawstyle="steps-post",
        )  # fmt: skip
        if method in aggregate.bands:
            low, high = aggregate.bands[method]
            panel.fill_between(aggregate.levels, low, high, color=colour, alpha=alpha, linewidth=0, step="post")
    panel.set(xlabel="normalised return", ylabel="share of runs above it")
    panel.set_xlim(aggregate.levels[0], aggregate.levels[-1])
    panel.set_ylim(0, 1.03)
    panel.grid(alpha=0.3)
    columns = _per_row([drawable(method) for method in aggregate.profiles], 5.0)
    figure.legend(loc="outside lower center", ncols=columns, frameon=False)
    return figure


def png(figure: Figure) -> bytes:
    """The picture as a file's content; the same figure gives the same bytes."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # of names in other scripts
        figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return stream.getvalue()
