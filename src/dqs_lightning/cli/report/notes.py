"""What a reader of a report must know before reading: what is missing, short, or of few seeds."""

from collections.abc import Sequence

from dqs_lightning.cli.report.aggregates import Aggregate
from dqs_lightning.cli.report.choices import Choices
from dqs_lightning.cli.report.provenance import Origin
from dqs_lightning.cli.report.runs import Run, grouped
from dqs_lightning.cli.report.statistics import Score

FEW_SEEDS = 5
SHOWN = 6


def notes_on(
    runs: Sequence[Run],
    origins: Sequence[Origin],
    scores: Sequence[Score],
    aggregates: Sequence[Aggregate],
    choices: Choices,
) -> list[str]:
    """One sentence or two each."""
    return [
        *_seeds(runs),
        *_states(runs, origins, choices.unscored),
        *_commits(runs, origins),
        *_frames(runs, scores, choices),
        *_tasks(scores, aggregates, choices),
        *_scale(scores, choices.max_return),
    ]


def _seeds(runs: Sequence[Run]) -> list[str]:
    counts = {
        f"{method} on {task}": len(members)
        for task, methods in grouped(runs).items()
        for method, members in methods.items()
    }
    single = [name for name, count in counts.items() if count == 1]
    notes = [f"One seed only, so no interval over seeds: {_some(single)}."] if single else []
    if any(1 < count < FEW_SEEDS for count in counts.values()):
        notes.append(f"Fewer than {FEW_SEEDS} seeds a method and task: intervals are wide, and differences uncertain.")
    return notes


def _states(runs: Sequence[Run], origins: Sequence[Origin], unscored: Sequence[str]) -> list[str]:
    unfinished = [
        f"{run.shown} ({o.state})" for run, o in zip(runs, origins, strict=True) if o.state not in ("", "done")
    ]
    notes = [f"Not done, and counted as far as they came: {_some(unfinished)}."] if unfinished else []
    if unscored:
        notes.append(f"In the sweep, but not evaluated yet, so not counted: {_some(unscored)}.")
    return notes


def _commits(runs: Sequence[Run], origins: Sequence[Origin]) -> list[str]:
    """Settings are compared where the runs are read; what the code did with them is not."""
    commits: dict[str, set[str]] = {}
    for run, origin in zip(runs, origins, strict=True):
        commits.setdefault(f"{run.method} on {run.task}", set()).add(origin.commit)
    mixed = [name for name, found in commits.items() if len(found) > 1]
    return [f"Seeds of one method that were trained by several commits: {_some(mixed)}."] if mixed else []


def _frames(runs: Sequence[Run], scores: Sequence[Score], choices: Choices) -> list[str]:
    notes = []
    last = [run.scores.frames[-1] for run in runs]
    if not choices.chosen and min(last) < max(last):
        shortest = runs[last.index(min(last))].shown
        notes.append(
            f"Tables stand at {choices.frames[0]:,} frames, the last that all runs reached ({shortest} ends there; the "
            f"longest run has {max(last):,.0f}). --frames chooses others."
        )
    for frames in choices.frames:
        there = {(one.task, one.method): len(one.returns) for one in scores if one.frames == frames}
        short = [
            f"{method} on {task} ({there.get((task, method), 0)} of {len(members)} seeds)"
            for task, methods in grouped(runs).items()
            for method, members in methods.items()
            if there.get((task, method), 0) < len(members)
        ]
        if short:
            notes.append(f"Not all seeds were evaluated around {frames:,} frames: {_some(short)}.")
    return notes


def _tasks(scores: Sequence[Score], aggregates: Sequence[Aggregate], choices: Choices) -> list[str]:
    notes = []
    for frames in choices.frames:
        there = dict.fromkeys(one.task for one in scores if one.frames == frames)
        over = next((one for one in aggregates if one.frames == frames), None)
        if over is None:
            notes.append(f"At {frames:,} frames all methods and {choices.baseline} share no task: nothing is compared.")
            continue
        left = [task for task in there if task not in over.tasks]
        if left:
            notes.append(f"At {frames:,} frames not compared over tasks, since a method lacks them: {', '.join(left)}.")
        cut = [one for one in scores if one.frames == frames and len(one.returns) > over.seeds[one.method]]
        cut = [one for one in cut if one.task in over.tasks]
        if cut:
            names = ", ".join(
                f"{one.method} on {one.task} ({over.seeds[one.method]} of {len(one.returns)})" for one in cut
            )
            notes.append(f"Compared over tasks by the first seeds only, as many as each task has: {names}.")
    empty = [task for task, rows in choices.published.items() if not rows]
    if empty and any(choices.published.values()):
        notes.append(f"No published return to draw at the frames of these runs: {', '.join(empty)}.")
    return notes


def _scale(scores: Sequence[Score], max_return: float) -> list[str]:
    best = max(value for one in scores for value in one.returns)
    if best > max_return:
        return [f"Returns go up to {best:g}, above --max-return={max_return:g}, by which the comparison divides them."]
    if best < 0.02 * max_return:
        return [f"Returns go up to {best:g} only; the comparison divides them by --max-return={max_return:g}."]
    return []


def _some(names: Sequence[str]) -> str:
    """The first few names, and how many there are beyond them; the tables hold them all."""
    more = len(names) - SHOWN
    return f"{', '.join(names[:SHOWN])} and {more} more" if more > 0 else ", ".join(names)
