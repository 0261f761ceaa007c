"""Draws the pictures of a report. A method has one colour in all of them; published returns are open marks."""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import matplotlib
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from dqs_callbacks.pictures import COLOURS, DPI, STYLE
from dqs_lightning.cli.report.measure import Report
from dqs_lightning.cli.report.statistics import Aggregate, curve

LINES = ("-", "--", ":", "-.")
MARKS = ("s", "^", "D", "v", "P", "X", "o", "<", ">", "p", "h", "*")
FEW_POINTS, FEW_SEEDS, FEW_METHODS = 16, 5, 4
"""Lines of few points show them. Few seeds, in panels of few methods, are drawn one by one: their band is wide."""
AXES = {
    "frames": ("frames.png", "Return against environment frames"),
    "updates": ("updates.png", "Return against updates"),
    "wall_s": ("wall_clock.png", "Return against wall-clock time, evaluations included"),
}
Styles = Mapping[str, tuple[str, str]]
"""Colour and line by method."""


@dataclass(frozen=True)
class Picture:
    """A picture: the name and content of its file, its title and its caption."""

    name: str
    title: str
    caption: str
    content: bytes


def pictures_of(report: Report) -> list[Picture]:
    """Draws learning curves against frames, updates and time, and the comparison over tasks at the last frames."""
    styles = style_of(list(report.scores["method"].unique()))
    least, most = report.scores["episodes"].agg(["min", "max"]).astype(int)
    episodes = f"{least}" if least == most else f"{least} to {most}"
    caption = (
        f"Mean over seeds of the return of an evaluation, the mean of {episodes} episodes. Bands: 95 % Student "
        "interval over seeds, cut at the edge of the panel; one seed has no band. Thin lines: seeds, where a method "
        "has fewer than five and a panel at most four methods. Between evaluations returns are joined by straight "
        "lines, and a line goes as far as all of its seeds do."
    )
    found = []
    with matplotlib.rc_context(STYLE):
        for axis, (name, title) in AXES.items():
            rows = report.published if axis == "frames" else report.published.iloc[:0]
            marks = " Open marks: published returns, at the frames of their rows." if len(rows) else ""
            found.append(Picture(name, title, caption + marks, png(draw_curves(report.scores, axis, styles, rows))))
        for one in report.aggregates[-1:]:
            divided = f"returns divided by {report.options.max_return:g}"
            where = f"At {one.frames:,} frames over {', '.join(one.tasks)}; {divided}."
            band = "95 % stratified bootstrap intervals over seeds, where there are two or more (rliable)."
            bars, profiles = png(draw_aggregate(one, styles)), png(draw_profiles(one, styles))
            found.append(Picture("aggregate.png", "Methods over tasks", f"{where} Bars: {band}", bars))
            found.append(Picture("profiles.png", "Performance profiles", f"{where} Bands: {band}", profiles))
    return found


def style_of(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Returns colour and line of each method."""
    order = (*COLOURS[:6], COLOURS[7])  # without yellow, which is faint on white
    looks = [(colour, line) for line in LINES for colour in order]
    return dict(zip(methods, cycle(looks)))


def draw_curves(scores: pd.DataFrame, axis: str, styles: Styles, published: pd.DataFrame) -> Figure:
    """Draws one panel a task, one line a method, with its band; published returns as marks.

    `scores` are of `statistics.tidy`; `axis` is frames, updates or wall_s; `styles` are those of all methods in every
    picture; `published` is of `measure.choose_published`, and empty for any axis but frames.
    """
    tasks, labels = list(scores["task"].unique()), list(published["label"].unique())
    columns = min(len(tasks), 3)
    rows = math.ceil(len(tasks) / columns)
    size = (5.0, 2.7) if columns == 1 else (2.9 * columns, 2.2 * rows)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    lines: dict[str, Artist] = {}
    marks: dict[str, Artist] = {}
    for panel, task in zip(panels, tasks, strict=False):
        here, marked = scores[scores["task"] == task], published[published["task"] == task]
        lines |= _draw_lines(panel, here, axis, styles)
        for row in marked.itertuples():
            look = {"color": "0.25", "fillstyle": "none", "markersize": 5.5, "clip_on": False, "zorder": 3}
            (marks[row.label],) = panel.plot(row.frames, row.mean, MARKS[labels.index(row.label) % len(MARKS)], **look)
        low = min(here["return"].min(), 0.0)  # all seeds and marks; a band of few seeds would stretch it many times
        high = max(here["return"].max(), *marked["mean"], low + 1e-9 * max(1.0, -low))
        room = 0.06 * (high - low)
        panel.set(title=drawable(task), ylim=(low if low == 0 else low - room, high + room))
        panel.set_xlim(left=0)
        panel.grid(alpha=0.3)
    for panel in panels[len(tasks) :]:
        panel.set_axis_off()
    for panel in panels[::columns]:
        panel.set_ylabel("return of an episode")
    _legend(figure, [lines[name] for name in styles], [drawable(name) for name in styles])
    if labels:
        _legend(figure, [marks[label] for label in labels], [f"published: {label}" for label in labels], above=True)
    return figure


def drawable(text: str, longest: int = 60) -> str:
    """Returns a text that Matplotlib draws as it is: no mathematics, and no name that a legend would leave out."""
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    return (" " if cut.startswith("_") else "") + cut.replace("$", r"\$")


def _legend(figure: Figure, artists: Sequence[Artist], texts: Sequence[str], above: bool = False) -> None:
    """Adds a legend below or above the figure, with as many entries side by side as its width has room for."""
    inches = 0.5 + 0.06 * max(map(len, texts))  # of an entry: its line, and 0.06 a letter
    columns = max(min(int(figure.get_figwidth() // inches), len(texts)), 1)
    look = {"bbox_to_anchor": (0.5, float(above)), "ncols": columns, "frameon": False}
    figure.legend(artists, texts, loc="lower center" if above else "upper center", **look)


def _draw_lines(panel: Axes, scores: pd.DataFrame, axis: str, styles: Styles) -> dict[str, Artist]:
    """Draws means and bands of a task's methods, and the axis below them; returns the lines for the legend."""
    scale = 1.0
    if axis == "wall_s":
        longest = scores["wall_s"].max()
        scale, unit = (1, "seconds") if longest < 300 else (60, "minutes") if longest < 3 * 3600 else (3600, "hours")
        panel.set_xlabel(f"wall-clock time ({unit})")
    else:
        panel.set_xlabel({"frames": "environment frames", "updates": "updates"}[axis])
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    found: dict[str, Artist] = {}
    few = scores["method"].nunique() <= FEW_METHODS
    for method, runs in scores.groupby("method", sort=False):
        line, (colour, dashes), seeds = curve(runs, axis), styles[method], runs["seed"].nunique()
        dot = "." if len(line) < FEW_POINTS else ""
        found[method] = panel.plot(line.index / scale, line["mean"], dashes, color=colour, marker=dot, linewidth=1.5)[0]
        for _, run in runs.groupby("seed") if 1 < seeds < FEW_SEEDS and few else ():
            last = run.drop_duplicates(axis, keep="last")
            panel.plot(last[axis] / scale, last["return"], dashes, color=colour, linewidth=0.6, alpha=0.6)
        if seeds > 1:
            alpha = 0.18 if few else 0.09
            panel.fill_between(line.index / scale, line["low"], line["high"], color=colour, alpha=alpha, linewidth=0)
    return found


def draw_aggregate(aggregate: Aggregate, styles: Styles) -> Figure:
    """Draws IQM, optimality gap and probability of improvement, with their intervals."""
    table, methods = aggregate.table, list(aggregate.table.index)
    panels = {"iqm": "IQM of the normalised return", "gap": "optimality gap"}
    if len(methods) > 1:
        panels["better"] = f"P(better than {drawable(aggregate.baseline)})"
    figure = Figure(figsize=(2.6 * len(panels) + 0.6, 0.75 + 0.28 * len(methods)), layout="constrained")
    for panel, (name, label) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
        colours = [styles[method][0] for method in methods]
        panel.hlines(range(len(methods)), table[f"{name}_low"], table[f"{name}_high"], colours, linewidth=7, alpha=0.35)
        panel.scatter(table[name], range(len(methods)), s=25, c=colours, zorder=3)
        panel.set_yticks(range(len(methods)), [drawable(method) for method in methods])
        panel.set(ylim=(len(methods) - 0.5, -0.5), xlabel=label)
        panel.grid(axis="x", alpha=0.3)
        panel.xaxis.set_major_locator(MaxNLocator(4))
        if name == "better":
            panel.axvline(0.5, color="0.4", linewidth=1, linestyle="--")
            panel.set(xlim=(-0.04, 1.04), xticks=(0, 0.25, 0.5, 0.75, 1))
    return figure


def draw_profiles(aggregate: Aggregate, styles: Styles) -> Figure:
    """Draws the share of seeds and tasks above each return."""
    figure = Figure(figsize=(5.0, 3.0), layout="constrained")
    panel = figure.subplots()
    alpha = 0.18 if len(aggregate.profiles) <= FEW_METHODS else 0.09
    for method, profile in aggregate.profiles.items():
        colour, dashes = styles[method]
        panel.step(profile.index, profile["share"], dashes, where="post", color=colour, linewidth=1.5)
        band = profile.index, profile["low"], profile["high"]
        panel.fill_between(*band, color=colour, alpha=alpha, linewidth=0, step="post")
    panel.set(xlabel="normalised return", ylabel="share of runs above it", ylim=(0, 1.03))
    panel.set_xlim(profile.index[0], profile.index[-1])
    panel.grid(alpha=0.3)
    _legend(figure, panel.lines, [drawable(method) for method in aggregate.profiles])
    return figure


def png(figure: Figure) -> bytes:
    """Returns the picture as a file's content; the same figure gives the same bytes."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # of names in other scripts
        figure.savefig(stream, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    return stream.getvalue()
