"""The page of the environments that were run, from the rows of `environments.py`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

FIELDS = [
    "suite", "environment", "observation_size", "action_size", "outcome", "frames", "updates", "return",
    "frames_per_s", "physics_errors", "reason", "command", "commit", "versions",
]  # fmt: skip

HEAD = """# Environments that were run

Every environment with continuous actions that `gymnasium[box2d,mujoco]` and `gymnasium-robotics` register, in the
newest version of each id, and every task of the Control Suite: 2,000 frames with `DQS` at its default settings in four
environments that are stepped together, about 200 frames of them with random actions, one update for ten agent steps,
and an evaluation of two episodes of at most 200 agent steps. A run shows that an environment trains, and not how well:
so few updates solve none of them. `benchmarks/environments.py` writes this page; the rows, with the command, commit and
versions of each, are in `benchmarks/results/environments.csv`.

The return is the mean of the two episodes as far as they were run. Frames per second include the updates, on one core
that other work shared. Physics errors are steps in which the simulation diverged; each ended its episode as
[terminated](components/environments.md#dmcontrol). Settings of Gymnasium's environments are on
[Environments](components/environments.md#gym).
"""
TITLES = {
    "gymnasium": "Gymnasium",
    "gymnasium-robotics": "gymnasium-robotics",
    "Control Suite": "DeepMind Control Suite",
}
COLUMNS = {
    "environment": "environment", "observation_size": "observation", "action_size": "action", "outcome": "outcome",
    "updates": "updates", "return": "return", "frames_per_s": "frames/s", "physics_errors": "physics errors",
    "reason": "reason",
}  # fmt: skip


def page(rows: Sequence[Mapping[str, Any]], tasks: int) -> str:
    """Markdown with a table for each suite.

    Args:
        rows: one for each environment that was run, with the keys of FIELDS.
        tasks: how many environments there are.
    """
    discrete = [row["environment"] for row in rows if row["outcome"] == "discrete"]
    shown = [row for row in rows if row["outcome"] != "discrete"]
    counts = Counter(row["outcome"] for row in shown)
    parts = [HEAD, f"Of {len(shown)} environments, {_listed(counts)}."]
    if tasks > len(rows):
        parts.append(f"{tasks - len(rows)} environments have not been run yet.")
    if discrete:
        parts.append(f"Left out, since their actions are discrete: {', '.join(discrete)}.")
    parts.append("")
    for suite, title in TITLES.items():
        if of_suite := [row for row in shown if row["suite"] == suite]:
            parts += [f"## {title}\n", _line(COLUMNS.values()), _line("---" for _ in COLUMNS)]
            parts += [_line(_cell(row.get(key)) for key in COLUMNS) for row in of_suite]
            parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def _listed(counts: Counter[str]) -> str:
    words = {"trains": "train", "refused": "refused", "stopped": "stopped", "failed": "failed"}
    return ", ".join(f"{counts[outcome]} {word}" for outcome, word in words.items() if counts[outcome]) or "none ran"


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Any) -> str:
    return str("" if value is None else value).replace("|", "\\|").replace("<", "&lt;")
