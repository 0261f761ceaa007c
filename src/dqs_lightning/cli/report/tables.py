"""Makes the tables of a report: data frames of text, as Markdown here and as HTML by the template of the page."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from dqs_lightning.cli.report.measure import BATCH, Report, read_published
from dqs_lightning.cli.report.statistics import REPS, at, costs, summary

NONE = "-"
NUMERIC = set("0123456789.,-[]() ±")
LONG = 36
"""Characters of a cell that may be broken into lines."""
_MARKDOWN = re.compile(r"[\\`*~|$\[\]]|(?<!\w)_|_(?!\w)")


@dataclass(frozen=True)
class Table:
    """A table of texts, with its title and a note on how to read it."""

    title: str
    cells: pd.DataFrame
    note: str

    def classes(self, name: str) -> str:
        """Returns the style of a column on the page: numbers are aligned to the right, long texts are broken."""
        right = "right" if NUMERIC.issuperset("".join(self.cells[name])) else ""
        long = "long" if max(map(len, [name, *self.cells[name]])) > LONG else ""
        return f"{right} {long}".strip()

    def markdown(self) -> str:
        """Returns the table as lines of Markdown."""
        rows = [list(self.cells), ["---"] * self.cells.shape[1], *self.cells.to_numpy().tolist()]
        shown = [[cell if NUMERIC.issuperset(cell) else markdown(cell) for cell in row] for row in rows]
        lines = [f"| {' | '.join(row)} |" for row in shown]
        return "\n".join([f"**{markdown(self.title)}.** {markdown(self.note)}", "", *lines])


def markdown(text: str) -> str:
    """Returns a text that Markdown shows as it is: no HTML, links, emphasis, code, mathematics or table cells."""
    return html.escape(_MARKDOWN.sub(r"\\\g<0>", text), quote=False)


def tables_of(report: Report) -> list[Table]:
    """Returns the tables of a report in the order in which they are read."""
    over = [_over_tasks(report)] if report.aggregates else []
    beside = [_beside_published(report)] if len(report.published) else []
    return [*over, _returns(report), *beside, _cost(report), _runs(report)]


def _returns(report: Report) -> Table:
    table = summary(report.points)
    digits = _digits(table["mean"].abs().max())
    formats = {"frames": ",d", "seeds": "d", "mean": f".{digits}f", "std": f".{digits}f"}
    for name, spec in (formats | {"updates": ",.0f", "wall_s": ",.0f"}).items():
        table[name] = _texts(table[name], spec)
    table["95 % interval"] = [_interval(*ends, digits) for ends in zip(table["low"], table["high"], strict=True)]
    table = table.rename(columns={"wall_s": "wall s"})
    return Table(
        "Returns",
        table[["task", "frames", "method", "seeds", "mean", "std", "95 % interval", "updates", "wall s"]],
        "Mean over seeds of the return of an evaluation at those frames; between two evaluations on the line that "
        "joins them. std: over seeds, divided by their number less one. Interval: Student's, over seeds. Updates and "
        "wall seconds, evaluations included, are those by then, mean over seeds.",
    )


def _beside_published(report: Report) -> Table:
    """The published returns that are drawn, beside ours at the same frames."""
    theirs = report.published.assign(method="published: " + report.published["label"])
    theirs["cell"] = [f"{mean:g} ± {std:g} ({n})" for mean, std, n in theirs[["mean", "std", "seeds"]].to_numpy()]
    ours = summary(at(report.scores, sorted(theirs["frames"].unique())))
    ours["cell"] = [
        f"{mean:.{_digits(mean)}f}{'' if pd.isna(std) else f' ± {std:.{_digits(mean)}f}'} ({n:.0f})"
        for mean, std, n in ours[["mean", "std", "seeds"]].to_numpy()
    ]
    both = pd.concat([ours.merge(theirs[["task", "frames"]].drop_duplicates()), theirs])
    wide = both.pivot(index=["task", "frames"], columns="method", values="cell").fillna(NONE)
    wide = wide[both["method"].unique()].reset_index()
    note = f"Mean ± std over seeds (number of seeds). Ours as in the table of returns. {read_published()[1]}"
    return Table("Beside published returns", wide.assign(frames=_texts(wide["frames"], ",.0f")), note)


def _over_tasks(report: Report) -> Table:
    table = pd.concat([one.table.assign(frames=one.frames) for one in report.aggregates]).reset_index(names="method")
    several = table["better"].notna().any()
    better = {"better": f"P(better than {report.baseline})"} if several else {}
    cells = table[["frames", "method", "seeds"]].assign(frames=_texts(table["frames"], ",d"))
    cells["seeds"] = _texts(table["seeds"], "d")
    for name, title in ({"iqm": "IQM", "gap": "optimality gap"} | better).items():
        intervals = [_interval(*ends, 3) for ends in zip(table[f"{name}_low"], table[f"{name}_high"], strict=True)]
        texts = _texts(table[name], ".3f") + " " + pd.Series(intervals)
        cells[title] = [text.removesuffix(f" {NONE}") for text in texts]
    over = "; ".join(f"{one.frames:,} frames: {', '.join(one.tasks)}" for one in report.aggregates)
    return Table(
        "Over tasks",
        cells,
        f"Returns divided by {report.options.max_return:g}, over the tasks that all methods share ({over}). IQM: mean "
        "of the middle half of seeds and tasks. Optimality gap: mean shortfall from 1. "
        + ("P: probability that a seed is above one of the baseline, mean over tasks. " if several else "")
        + f"In brackets 95 % intervals: stratified bootstrap over seeds, {REPS} samples, by rliable. It never passes "
        "the smallest and the largest seed: of few seeds it is too narrow.",
    )


def _cost(report: Report) -> Table:
    table = costs(report.scores)
    table["logged"] = pd.Series([run.updates_per_s for run in report.runs], dtype=float)
    logged = table["logged"].notna().any()
    cells = table.drop(columns="seed").groupby(["task", "method"], sort=False).agg(_mean_and_range).reset_index()
    cells.columns = ["task", "method", "wall s / 1000 updates", "frames/s", "updates/s, logged"]
    if not logged:
        cells = cells.iloc[:, :-1]
    if report.decisions:
        none = float("nan"), float("nan")
        times = [report.decisions.get(key, none) for key in zip(cells["task"], cells["method"], strict=True)]
        cells["ms a decision"] = _texts([one for one, _ in times], ".2f")
        cells[f"ms of {BATCH} at once"] = _texts([many for _, many in times], ".2f")
    return Table(
        "Cost",
        cells,
        "Between a run's first and last evaluation, collection and evaluations included, on the machine of the run and "
        "beside whatever else ran there. Mean over seeds [smallest, largest]."
        + (" Logged: the median of a run's time/updates_per_s in metrics.csv." if logged else "")
        + (" Decisions: medians on the machine that made this page, one thread, in turns." if report.decisions else ""),
    )


def _runs(report: Report) -> Table:
    """The runs from which all figures come."""
    table = pd.DataFrame(report.runs).astype({"seed": str}).rename(columns={"action_repeat": "action repeat"})
    table["last frame"] = [f"{run.rows[-1][0]:,.0f}" for run in report.runs]
    state = ["state"] if table["state"].any() else []
    columns = ["run", "task", "method", "seed", "last frame", "action repeat", *state, "commit", "versions", "command"]
    return Table(
        "Runs",
        table[columns].replace("", NONE),
        "All figures above are of these runs' evaluations. Commit, versions, machine and command are those that the "
        "run recorded; of absolute paths only the end is shown.",
    )


def _digits(mean: float) -> int:
    """Returns the number of decimals: returns of a few units need more than those of hundreds."""
    return 1 if abs(mean) >= 10 else 3


def _interval(low: float, high: float, digits: int) -> str:
    return NONE if pd.isna(low) else f"[{low:.{digits}f}, {high:.{digits}f}]"


def _texts(values: Sequence[float] | pd.Series, spec: str) -> pd.Series:
    return pd.Series(values).map(f"{{:{spec}}}".format, na_action="ignore").fillna(NONE)


def _mean_and_range(values: pd.Series) -> str:
    found = values.dropna()
    if found.empty:
        return NONE
    return f"{found.mean():.1f}" + (f" [{found.min():.1f}, {found.max():.1f}]" if len(found) > 1 else "")
