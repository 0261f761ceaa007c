"""The tables of a report, as Markdown and as HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from dqs_lightning.cli.escape import markdown, printable
from dqs_lightning.cli.report.aggregates import REPS, Aggregate, Estimate
from dqs_lightning.cli.report.decisions import BATCH, Decisions
from dqs_lightning.cli.report.provenance import Origin
from dqs_lightning.cli.report.published import Published
from dqs_lightning.cli.report.runs import Run
from dqs_lightning.cli.report.statistics import Cost, Score

NONE = "-"
NUMERIC = set("0123456789.,-[]() ±")
LONG = 36
"""Longer cells may be broken into lines."""


@dataclass(frozen=True)
class Table:
    """Rows of cells below a head, and what is to be known of them."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str

    def markdown(self) -> str:
        """As lines of Markdown."""
        cells = [self.head, tuple("---" for _ in self.head), *self.rows]
        lines = [
            "| " + " | ".join(cell if _is_numeric(cell) else markdown(cell) for cell in row) + " |" for row in cells
        ]
        return "\n".join([f"**{markdown(self.title)}.** {markdown(self.note)}", "", *lines])

    def html(self) -> str:
        """As an element that scrolls on its own where the page is too narrow; numbers stand to the right."""
        columns = list(zip(*self.rows, strict=True))
        numeric = [all(_is_numeric(cell) for cell in column) for column in columns]
        head = "".join(_cell("th", cell, right) for cell, right in zip(self.head, numeric, strict=True))
        rows = "\n".join(
            "<tr>" + "".join(_cell("td", cell, right) for cell, right in zip(row, numeric, strict=True)) + "</tr>"
            for row in self.rows
        )
        return (
            f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>\n'
            f'<p class="note">{escape(self.note)}</p>'
        )


def score_table(scores: Sequence[Score]) -> Table:
    """Returns at the chosen frames."""
    digits = _digits([score.mean for score in scores])
    rows = [
        (
            score.task,
            f"{score.frames:,}",
            score.method,
            str(len(score.returns)),
            f"{score.mean:.{digits}f}",
            _number(score.std, digits),
            _interval(score.interval, digits),
            f"{score.updates:,.0f}",
            f"{score.wall_s:,.0f}",
        )
        for score in sorted(scores, key=lambda score: (score.task, score.frames))
    ]
    return Table(
        "Returns",
        ("task", "frames", "method", "seeds", "mean", "std", "95 % interval", "updates", "wall s"),
        rows,
        "Mean over seeds of the return of an evaluation at those frames; between two evaluations on the line that "
        "joins them. std: over seeds, divided by their number less one. Interval: Student's, over seeds. Updates and "
        "wall seconds, evaluations included, are those by then, mean over seeds.",
    )


def published_table(published: Mapping[str, Sequence[Published]], own: Sequence[Score], source: str) -> Table:
    """The published returns that are drawn, beside ours at the same frames.

    Args:
        published: by task.
        own: our scores at the frames of all these rows.
        source: where the published numbers come from.
    """
    labels = list(dict.fromkeys(one.label for rows in published.values() for one in rows))
    methods = list(dict.fromkeys(score.method for score in own))
    ours = {(score.task, score.frames, score.method): score for score in own}
    theirs = {(task, one.frames, one.label): one for task, rows in published.items() for one in rows}
    rows = []
    for task, frames in sorted({(task, frames) for task, frames, _ in theirs}):
        found = [ours.get((task, frames, method)) for method in methods]
        cells = [_mean_std(score.mean, score.std, len(score.returns)) if score else NONE for score in found]
        others = [theirs.get((task, frames, label)) for label in labels]
        cells += [f"{one.mean:g} ± {one.std:g} ({one.seeds})" if one else NONE for one in others]
        rows.append((task, f"{frames:,}", *cells))
    return Table(
        "Beside published returns",
        ("task", "frames", *methods, *(f"published: {label}" for label in labels)),
        rows,
        f"Mean ± std over seeds (number of seeds). Ours as in the table of returns. {source}",
    )


def aggregate_table(aggregates: Sequence[Aggregate], max_return: float) -> Table:
    """IQM, optimality gap and, of several methods, probability of improvement."""
    baseline, several = aggregates[0].baseline, any(one.improvement for one in aggregates)
    rows = [
        (
            f"{one.frames:,}",
            method,
            str(one.seeds[method]),
            _estimate(one.iqm[method]),
            _estimate(one.gap[method]),
            *([_estimate(one.improvement[method]) if method in one.improvement else NONE] if several else []),
        )
        for one in aggregates
        for method in one.iqm
    ]
    over = "; ".join(f"{one.frames:,} frames: {', '.join(one.tasks)}" for one in aggregates)
    return Table(
        "Over tasks",
        ("frames", "method", "seeds", "IQM", "optimality gap", *([f"P(better than {baseline})"] if several else [])),
        rows,
        f"Returns divided by {max_return:g}, over the tasks that all methods share ({over}). IQM: mean of the middle "
        "half of seeds and tasks. Optimality gap: mean shortfall from 1. "
        + ("P: probability that a seed is above one of the baseline, mean over tasks. " if several else "")
        + "In brackets 95 % intervals: stratified bootstrap over seeds, "
        f"{REPS} samples, by rliable. It never passes the least and the greatest seed: of few seeds it is too narrow.",
    )


def cost_table(costs: Sequence[Cost], rates: Mapping[tuple[str, str], Sequence[float]], decisions: Decisions) -> Table:
    """What training took.

    Args:
        costs: by task and method.
        rates: logged updates a second, one a seed, by task and method; empty lists where none were logged.
        decisions: what a decision takes; empty where it was not measured.
    """
    logged = any(rates.values())
    rows = [
        (
            one.task,
            one.method,
            _spread(one.seconds_per_1000),
            _spread(one.frames_per_s),
            *([_spread(rates[one.task, one.method])] if logged else []),
            *(_decision(decisions.get((one.task, one.method))) if decisions else []),
        )
        for one in costs
    ]
    return Table(
        "Cost",
        (
            "task",
            "method",
            "wall s / 1000 updates",
            "frames/s",
            *(["updates/s, logged"] if logged else []),
            *(["ms a decision", f"ms of {BATCH} at once"] if decisions else []),
        ),
        rows,
        "Between a run's first and last evaluation, collection and evaluations included, on the machine of the run and "
        "beside whatever else ran there. Mean over seeds [least, greatest]."
        + (" Logged: the median of a run's time/updates_per_s in metrics.csv." if logged else "")
        + (" Decisions: medians on the machine that made this page, one thread, in turns." if decisions else ""),
    )


def _decision(times: tuple[float, float] | None) -> tuple[str, str]:
    return (f"{times[0]:.2f}", f"{times[1]:.2f}") if times else (NONE, NONE)


def run_table(runs: Sequence[Run], origins: Sequence[Origin]) -> Table:
    """Where every figure comes from."""
    with_state = any(origin.state for origin in origins)
    rows = [
        (
            run.shown,
            run.task,
            run.method,
            str(run.seed),
            f"{run.scores.frames[-1]:,.0f}",
            _action_repeat(run),
            *([origin.state or NONE] if with_state else []),
            origin.commit,
            origin.versions,
            origin.command,
        )
        for run, origin in zip(runs, origins, strict=True)
    ]
    state = ["state"] if with_state else []
    return Table(
        "Runs",
        ("run", "task", "method", "seed", "last frame", "action repeat", *state, "commit", "versions", "command"),
        rows,
        "All figures above are of these runs' scores.jsonl. Commit, versions and command are those that the run "
        "recorded; of absolute paths only the end is shown.",
    )


def _action_repeat(run: Run) -> str:
    try:
        return printable(run.config["data"]["environment"]["init_args"]["action_repeat"], 20)
    except (KeyError, TypeError):
        return NONE


def _is_numeric(cell: str) -> bool:
    return set(cell) <= NUMERIC


def _cell(tag: str, text: str, right: bool) -> str:
    classes = " ".join(name for name, holds in (("right", right), ("long", len(text) > LONG)) if holds)
    return f'<{tag} class="{classes}">{escape(text)}</{tag}>' if classes else f"<{tag}>{escape(text)}</{tag}>"


def _mean_std(mean: float, std: float | None, seeds: int) -> str:
    digits = _digits([mean])
    return f"{mean:.{digits}f}{f' ± {std:.{digits}f}' if std is not None else ''} ({seeds})"


def _digits(means: Sequence[float]) -> int:
    """Decimals of a column: returns of a few units need more than those of hundreds."""
    return 1 if max(abs(mean) for mean in means) >= 10 else 3


def _number(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def _interval(interval: tuple[float, float] | None, digits: int) -> str:
    return NONE if interval is None else f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def _estimate(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} {_interval(estimate.interval, 3)}".removesuffix(f" {NONE}")


def _spread(values: Sequence[float]) -> str:
    if not values:
        return NONE
    mean = sum(values) / len(values)
    return f"{mean:.1f} [{min(values):.1f}, {max(values):.1f}]" if len(values) > 1 else f"{mean:.1f}"
