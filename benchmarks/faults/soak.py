"""A run's memory, file descriptors, threads and shared memory do not grow, however long it goes on.

Three runs of 300,000 environment steps of the maze, each with 50 saves that are loaded again: in process, with two
workers, and as 50 runs in one process, each of which continues the one before. Every quantity is sampled after each
save, over all processes of the run, and the second half of the samples (the replay is full by then) is fitted by a
line. A cell passes unless a slope is above zero by two standard errors and above its limit.

    PYTHONPATH=benchmarks python -m faults.soak
"""

import math
import sys
from pathlib import Path
from typing import Any

from faults.hooks import MARKS, hook
from faults.long import continue_often, sample_after_saves
from faults.runs import FORKED, REAL
from faults.study import Cell, Lab, Outcome, main
from faults.tasks import arguments
from faults.usage import Usage, summary

STEPS, SAVES = 300_000, 50
ENVS, STEPS_PER_COLLECT, UPDATES_PER_STEP = 32, 8, 1 / 64
LIMITS = {"memory_mib": 2.0, "shared_mib": 0.5, "files": 0.5, "threads": 0.2, "entries": 0.5}
"""Growth per 100,000 steps that would matter in a run of millions; scaled up for shorter runs."""
LIMIT_S = 900.0
KINDS = {"one run": [], "one run, workers": ["--data.workers=2"], "50 continued runs": []}


def cells(brief: bool) -> list[Cell]:
    """Lists three runs as real processes; brief: only the first, forked, with 8 saves and a fiftieth of the steps."""
    if brief:
        return [Cell("one run", {"kind": "one run", "steps": STEPS // 50, "saves": 8, "how": FORKED})]
    return [Cell(name, {"kind": name, "steps": STEPS, "saves": SAVES, "how": REAL}) for name in KINDS]


def check(lab: Lab, place: Path, settings: dict[str, Any]) -> Outcome:
    kind, steps, saves = settings["kind"], settings["steps"], settings["saves"]
    block = ENVS * STEPS_PER_COLLECT
    steps = math.ceil(steps / (saves * block)) * saves * block
    updates_per_save = int(steps / saves * UPDATES_PER_STEP)
    argv = arguments(
        "maze",
        extra=[
            *KINDS[kind],
            f"--data.num_envs={ENVS}", f"--data.steps_per_collect={STEPS_PER_COLLECT}",
            f"--data.updates_per_step={UPDATES_PER_STEP}", f"--data.total_frames={steps}",
            f"--data.init_random_frames={block}", f"--data.replay_size={steps // 10}",
            f"--evaluate.every_frames={steps // 10}", f"--checkpoint.every_n_updates={updates_per_save}",
            "--trainer.log_every_n_steps=64",
        ],
    )  # fmt: skip
    hooks = [hook(sample_after_saves)]
    if kind == "50 continued runs":
        hooks.append(hook(continue_often, runs=saves, steps=steps))
    ended, err = lab.launcher.run(argv, place, limit_s=LIMIT_S, hooks=hooks, how=settings["how"])
    problems = [f"still running: {name}" for name in ended.left]
    if ended.code != 0:
        problems.append(f"exit code {ended.code}: {' '.join(err.split())[-400:]}")
        return Outcome(problems, {}, settings["how"])
    samples = read(place)
    limits = {name: limit * STEPS / steps for name, limit in LIMITS.items()}
    grown, figures = summary(samples[len(samples) // 2 :], limits)
    left = [f"left in shared memory: {name}" for name in held(place) if Path(name).exists()]
    return Outcome(
        problems + grown + left, {"steps": steps, "samples": len(samples), "run_s": ended.seconds, **figures}
    )


def held(place: Path) -> set[str]:
    """Returns the shared memory files that a run's processes have used."""
    file = place / MARKS / "shared"
    return {line.split(maxsplit=2)[2] for line in file.read_text().splitlines()} if file.exists() else set()


def read(place: Path) -> list[tuple[float, Usage]]:
    """Reads the samples of a run: environment steps and usage."""
    found = []
    for line in (place / MARKS / "usage").read_text().splitlines():
        step, *values = map(float, line.split()[2:])
        found.append((step, Usage(*values)))
    return found


if __name__ == "__main__":
    sys.exit(main("soak", __doc__, cells, check))
