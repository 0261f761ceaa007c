"""A stop signal in any phase of a run, to any rank, ends it in order, and the same command continues exactly.

{TERM, INT, USR1, HUP} x {start-up, building, warm-up, updates, evaluation, saving, closing} x {1 rank; 2 ranks: to the
first, the second, both}. Expected: exit code 75 within the phase's limit, no process left, no traceback, and a run
that the same command continues to the weights, optimizer, replay, random states, scores and metrics of an uninterrupted
one. In start-up nothing may have been written, and the same command starts a new run.

Start-up cells are real processes, signalled while they import torch; all others are forks that wait inside their phase
for the signal. Warm-up and evaluation are slowed down after it is sent, so that a run that waits for their end exceeds
the limit.

    PYTHONPATH=benchmarks python -m faults.signals --jobs 2
"""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from faults.compare import unequal
from faults.hooks import hook, pause, slow
from faults.runs import FORKED, REAL, Run
from faults.study import Cell, Lab, Outcome, main
from faults.tasks import RUN, arguments

SIGNALS = ("TERM", "INT", "USR1", "HUP")
TARGETS = {"1 rank": (0,), "2 ranks, first": (0,), "2 ranks, second": (1,), "2 ranks, both": (0, 1)}
STOPPED, DONE = 75, 0
END_WITHIN_S, OBEY_WITHIN_S = 30.0, 5.0
LIBRARY = "libtorch_cpu"
"""A process that has mapped this library is importing torch, which is during start-up."""


class Phase(NamedTuple):
    """Where a run waits for the signal, and how it must end.

    Attributes:
        hooks: hooks of all ranks; a `pause` is where the run waits.
        everywhere: whether every rank waits, or only the first.
        codes: expected exit codes.
        within_s: time limit until the last process has ended.
    """

    hooks: list[Any]
    everywhere: bool = True
    codes: tuple[int, ...] = (STOPPED,)
    within_s: float = END_WITHIN_S


def wait(target: str, call: int = 1, **settings: Any) -> list[Any]:
    return hook(pause, target=target, call=call, ranks=[0, 1], **settings)


SLOW = hook(slow, target="dqs_lightning.envs.navigation:PlaneBatch._step", seconds=0.5, calls=40)
PHASES = {
    "start-up": Phase([]),
    "start-up, parsing": Phase([wait("dqs_lightning.cli.training:FitCLI.before_instantiate_classes")], False),
    "start-up, constructing": Phase([wait("dqs_lightning.cli.training:FitCLI.instantiate_trainer")], False),
    "building": Phase([wait("dqs_lightning.collection.loader:OnlineLoader._start")]),
    "warm-up": Phase([wait("dqs_lightning.collection.loader:EpisodeReturns.add", 3), SLOW], within_s=OBEY_WITHIN_S),
    "updates": Phase([wait("dqs_lightning.agents.dqs:DQS.training_step", 22)]),
    "evaluation": Phase([wait("dqs_callbacks.evaluate:Evaluate.measure", 2), SLOW], False, within_s=OBEY_WITHIN_S),
    "saving": Phase([wait("dqs_lightning.run.checkpoint:atomic_save", 2)]),
    "closing, evaluating": Phase(
        [wait("dqs_callbacks.evaluate:Evaluate.measure", 3), SLOW], False, within_s=OBEY_WITHIN_S
    ),
    "closing": Phase([wait("dqs_callbacks.progress:FramesProgress.on_train_end")], codes=(DONE,)),
}
STARTING = tuple(name for name in PHASES if name.startswith("start-up"))
REAL_PHASES = ("updates", "closing")
"""Phases that are also tested with real processes, for one signal and target each."""


def cells(brief: bool) -> list[Cell]:
    """Lists all combinations and a sample of them as real processes; brief: some with one rank."""
    found = []
    for phase in PHASES:
        for target in TARGETS if not phase.startswith("start-up, ") else ("1 rank",):
            for number in SIGNALS:
                settings = {"signal": number, "phase": phase, "target": target}
                found.append(
                    Cell(f"{target}/{phase}/{number}", {**settings, "how": REAL if phase == "start-up" else FORKED})
                )
    if brief:
        chosen = ("start-up, constructing/HUP", "evaluation/TERM", "closing/INT")
        return [cell for cell in found if cell.name in [f"1 rank/{name}" for name in chosen]]
    for phase, target in zip(REAL_PHASES, ("1 rank", "2 ranks, both"), strict=True):
        settings = {"signal": "TERM", "phase": phase, "target": target, "how": REAL}
        found.append(Cell(f"{target}/{phase}/TERM, real process", settings))
    return found


def check(lab: Lab, place: Path, settings: dict[str, Any]) -> Outcome:
    phase, target, how = PHASES[settings["phase"]], settings["target"], settings["how"]
    ranks = int(target[0])
    # Saves are frequent only if the signal is sent during a save; results do not depend on them.
    extra = ["--checkpoint.every_n_updates=18"] if settings["phase"] == "saving" else []
    argv = arguments("maze", ranks=ranks, extra=extra)
    reference = lab.reference(f"signals-{ranks}", arguments("maze", ranks=ranks), ranks)
    module = "dqs_lightning.cli.fit" if settings["phase"] == "start-up" else "faults.child"
    run = lab.launcher.start(argv, place, ranks=ranks, hooks=phase.hooks, how=how, module=module)
    pids = importing(run, ranks) if settings["phase"] == "start-up" else waiting(run, ranks, phase.everywhere)
    number = getattr(signal, f"SIG{settings['signal']}")
    for rank in TARGETS[target]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[rank], number)
    if phase.hooks:
        run.go()
    ended, err = run.end(END_WITHIN_S), run.err
    problems = []
    if ended.code not in phase.codes:
        problems.append(f"exit code {ended.code}, expected {' or '.join(map(str, phase.codes))}: {err.strip()[-300:]}")
    if ended.seconds > phase.within_s:
        problems.append(f"ended after {ended.seconds} s, expected within {phase.within_s} s")
    problems += [f"still running: {name}" for name in ended.left]
    if "Traceback" in err:
        problems.append(f"traceback: {err.strip()[-200:]}")
    written = place / RUN / "config.yaml"
    if settings["phase"] in STARTING and written.exists():
        problems.append(f"{written.name} was written in start-up")
    again, err = lab.launcher.run(argv, place, ranks=ranks)
    if again.code != 0 or again.left:
        problems.append(f"the same command ended with {again}: {err.strip()[-300:]}")
    problems += [f"unequal: {name}" for name in unequal(reference / RUN, place / RUN)]
    return Outcome(problems, {"code": ended.code, "ended_s": ended.seconds}, how)


def waiting(run: Run, ranks: int, everywhere: bool) -> list[int]:
    """Returns the ranks' process ids after all ranks that reach the phase wait in it."""
    first = run.marked("paused-0")
    if ranks == 1:
        return [first]
    return [first, run.marked("paused-1") if everywhere else second(run)]


def second(run: Run) -> int:
    """Returns the second rank, which is the only child of the first without workers."""
    return next(pid for pid in run.processes() if pid != run.pid)


def importing(run: Run, ranks: int) -> list[int]:
    """Returns the ranks' process ids after the last of them has begun to import torch."""
    pids = [run.pid]
    until = time.monotonic() + 60
    while time.monotonic() < until and run.poll() is None:
        pids = [run.pid, *(pid for pid in run.processes() if pid != run.pid)]
        if len(pids) >= ranks and LIBRARY in Path(f"/proc/{pids[ranks - 1]}/maps").read_text():
            return pids[:ranks]
        time.sleep(0.02)
    raise RuntimeError(f"the ranks have not started; exit code {run.code}: {run.err[-600:]}")


if __name__ == "__main__":
    sys.exit(main("signals", __doc__, cells, check))
