"""Model cards in the format of the Hugging Face Hub: a README.md with metadata in front."""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dqs_lightning.checkpoint.atomic import atomic_write
from dqs_lightning.sharing.run import RunRecord
from dqs_lightning.sharing.text import block, code, printable

LIBRARY = "dqs-lightning"
NAME = "README.md"
STAMP = f"<!-- written by {LIBRARY}; sha256 of the lines above: "
MAX_BYTES = 4 * 2**20
"""Largest size at which a file is taken for a card."""


def card(facts: Mapping[str, Any], run: RunRecord, use: str, best_of: int | None, video: str | None = None) -> str:
    """Returns the text of a card.

    Args:
        facts: the metadata of the policy, see `facts`.
        run: its training.
        use: a section that shows how the policy is used, with its heading.
        best_of: of the agent; None for an agent without Q.
        video: link to the video.
    """
    agent, task = facts["agent"], facts.get("task", "an unknown task")
    frames = facts.get("env_frames")
    trained = f"{frames:,}" if isinstance(frames, int) else "an unknown number of"
    method = f" by the method {code(run.method)}" if run.method else ""
    parts = [
        _front(facts, run),
        f"# {printable(agent)} on {printable(task)}",
        f"A policy for {code(task)}: the agent {code(agent)}, trained{method} for {trained} frames with {LIBRARY}.",
        "## Returns",
        _returns(run, best_of),
        use,
        "## Observation",
        _observation(facts),
        "## Action",
        _action(facts),
        "## Training",
        _training(run),
        "## Versions",
        _versions(facts["versions"], run),
    ]
    if video:
        parts += ["## Video", f"[{code(video)}](<{video}>)"]
    return "\n\n".join(parts) + "\n"


def _front(facts: Mapping[str, Any], run: RunRecord) -> str:
    """Returns the metadata in front; returns of an unknown number of episodes or task are left out."""
    agent, task = str(facts["agent"]), facts.get("task")
    front: dict[str, Any] = {
        "library_name": LIBRARY,
        "pipeline_tag": "reinforcement-learning",
        "tags": list(dict.fromkeys(["reinforcement-learning", LIBRARY, agent, *([str(task)] if task else [])])),
    }
    if run.score and task and math.isfinite(run.score.mean):
        data = {"name": str(task), "type": str(task)}
        metric = {"type": "mean_reward", "name": "mean return", "value": run.score.mean, "verified": False}
        kind = {"type": "reinforcement-learning", "name": "reinforcement-learning"}
        result = {"task": kind, "dataset": data, "metrics": [metric]}
        front["model-index"] = [{"name": agent, "results": [result]}]
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---"


def _returns(run: RunRecord, best_of: int | None) -> str:
    score = run.score
    if score is None:
        return "No evaluation of this policy is known."
    interval = f"[{score.low:.1f}, {score.high:.1f}]" if math.isfinite(score.low + score.high) else "-"
    how, settings = "unknown", run.settings.get("evaluate")
    if isinstance(settings, Mapping):
        best = best_of and (settings.get("best_of") or best_of)
        how = f"the one of the highest Q of {best} samples" if best and best > 1 else "one sample"
        how = "without noise" if settings.get("deterministic") else how
    return (
        "| mean return | 95 % interval | episodes | frames | actions |\n|---|---|---|---|---|\n"
        f"| {score.mean:.1f} | {interval} | {score.episodes} | {score.env_frames:,} | {how} |\n\n"
        "The mean undiscounted return of the last evaluation of the run, with a Student interval over its episodes."
    )


def _observation(facts: Mapping[str, Any]) -> str:
    parts = facts.get("observation")
    lines = ["The numbers of the environment, in this order; they are normalised by the policy itself."]
    if facts.get("observation_normalisation") == "none":
        lines = ["The numbers of the environment, in this order. They are not normalised."]
    if transforms := facts.get("observation_transforms"):
        given = [
            f"{one['class_path'].rpartition('.')[2]}({_arguments(one.get('init_args', {}))})" for one in transforms
        ]
        lines.append(f"They must have passed through {', then '.join(map(code, given))}, which the file does not hold.")
    if not parts:
        return f"The order of the numbers is unknown{_reason(facts)}."
    rows = "\n".join(f"| {code(part['name'])} | {part['start']}:{part['stop']} |" for part in parts)
    return f"{' '.join(lines)}\n\n| part | slice |\n|---|---|\n{rows}"


def _arguments(given: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in given.items() if name != "in_keys")


def _action(facts: Mapping[str, Any]) -> str:
    low, high = facts.get("environment_action_low"), facts.get("environment_action_high")
    if low is None or high is None:
        return f"Numbers in [-1, 1]. The bounds of the environment are unknown{_reason(facts)}."
    seconds = facts.get("control_period_s")
    period = f"{seconds:g} s" if seconds else "of unknown length"
    rows = "\n".join(f"| {index} | {a:g} | {b:g} |" for index, (a, b) in enumerate(zip(low, high, strict=True)))
    return (
        "Numbers in [-1, 1], one for each dimension, which are scaled to the bounds of the environment:\n\n"
        f"{block(str(facts['action_mapping']))}\n\n| dimension | low | high |\n|---|---|---|\n{rows}\n\n"
        f"One action is applied for {facts['action_repeat']} frames: a control period {period}."
    )


def _reason(facts: Mapping[str, Any]) -> str:
    return f": {code(facts['unknown'])}" if "unknown" in facts else ""


def _training(run: RunRecord) -> str:
    if run.command is None:
        return "The command is unknown."
    text = yaml.safe_dump({"seed_everything": run.seed, **run.settings}, sort_keys=False)
    return f"{block(run.command, 'bash')}\n\nIts settings:\n\n{block(text, 'yaml')}"


def _versions(now: Mapping[str, str], run: RunRecord) -> str:
    names = dict.fromkeys((*now, *run.versions))
    rows = (f"| {name} | {_cell(run.versions.get(name))} | {_cell(now.get(name))} |" for name in names)
    return "\n".join(("| package | in training | of this file |", "|---|---|---|", *rows))


def _cell(value: str | None) -> str:
    return code(value) if value else "-"


def free_place(folder: Path, stem: str) -> Path:
    """Returns where a card can be written: README.md, or STEM.md where that is a file of the user.

    A card that was written here and has not been changed since is replaced; any other file is kept.

    Raises:
        ValueError: when both are files of the user; one line.
    """
    places = folder / NAME, folder / f"{stem}.md"
    for place in places:
        if not place.exists() or _is_ours(place):
            return place
    raise ValueError(f"{places[0]} and {places[1]} were not written by {LIBRARY}, or have been changed since")


def write(text: str, place: Path) -> None:
    """Writes a card, with a stamp by which it is known to be unchanged."""
    atomic_write(f"{text}\n{STAMP}{_digest(text)} -->\n".encode(), place)


def _is_ours(place: Path) -> bool:
    if not place.is_file() or place.stat().st_size > MAX_BYTES:
        return False
    text, stamp, rest = place.read_bytes().decode(errors="replace").rpartition(f"\n{STAMP}")
    return bool(stamp) and rest == f"{_digest(text)} -->\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
