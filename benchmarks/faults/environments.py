"""An environment that fails in any way ends the run in order, with its cause, and the run can be continued.

{raising, hanging, killed, stopped, NaN, wrong shape, wrong dtype, never done} x {in process, workers},
in each environment of the run and again after each restart, and for workers the first
four once only. Expected: the exit code of the table below, one message with the cause and no traceback, detection
within the limit of a step plus 8 s, the checkpoint of the last save or a later one, no process left, and a run that
the same command continues when the environment is fixed. A fault that occurs once costs a restart, and the run
ends normally.

    PYTHONPATH=benchmarks python -m faults.environments --jobs 2
"""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from dqs_lightning.checkpoint.archive import safe_load
from faults.faulty import MARK, ORDER
from faults.hooks import MARKS
from faults.runs import FORKED, REAL, Run
from faults.study import Cell, Lab, Outcome, main
from faults.tasks import BLOCKS, RUN, arguments

DONE, DIVERGED, FAILED, KILLED = 0, 3, 4, -signal.SIGKILL
STEP_TIMEOUT_S, DETECTED_WITHIN_S, END_WITHIN_S = 2.0, 8.0, 90.0
MODES = {"in process": [], "workers": ["--data.workers=2"]}
AFTER_SAVE = 90
STEP = {"in process": AFTER_SAVE, "workers": 45}
"""Steps to a recurring failure, chosen so that the fourth, after all restarts are used, is after a checkpoint."""
RESTARTED = ("raising", "hanging", "killed", "stopped")
SETTINGS = [
    "--data.environment=faults.faulty.Faulty", "--trust=faults", f"--data.step_timeout_s={STEP_TIMEOUT_S}",
    "--evaluate.max_steps=50", "--checkpoint.every_n_updates=4",
]  # fmt: skip


class Expected(NamedTuple):
    """How a run with a faulty environment must end.

    Attributes:
        code: exit code.
        message: a pattern that its message matches.
    """

    code: int
    message: str


SHAPE, DTYPE, NAN = Expected(FAILED, "shape"), Expected(FAILED, "float64"), Expected(DIVERGED, "observation")
TABLE: dict[str, dict[str, Expected]] = {
    "raising": dict.fromkeys(MODES, Expected(FAILED, "the simulator is unstable")),
    "hanging": dict.fromkeys(MODES, Expected(FAILED, f"within {STEP_TIMEOUT_S:g} s")),
    "killed": {**dict.fromkeys(MODES, Expected(FAILED, "killed by SIGKILL")), "in process": Expected(KILLED, "")},
    # The run itself is stopped, and continues after SIGCONT.
    "stopped": {**dict.fromkeys(MODES, Expected(FAILED, "stopped by a signal")), "in process": Expected(DONE, "")},
    "NaN": dict.fromkeys(MODES, NAN),
    "wrong shape": dict.fromkeys(MODES, SHAPE),
    "wrong dtype": dict.fromkeys(MODES, DTYPE),
    "never done": dict.fromkeys(MODES, Expected(DONE, "did not end within 50 steps")),
}
ONCE = Expected(DONE, "replaced")


def cells(brief: bool) -> list[Cell]:
    """Lists all combinations, faults fixed by a restart, and one case of each mode as a real process; brief: two."""
    found = [
        Cell(f"{mode}/{fault}", {"mode": mode, "fault": fault, "once": False}) for mode in MODES for fault in TABLE
    ]
    found += [
        Cell(f"{mode}/{fault} once", {"mode": mode, "fault": fault, "once": True})
        for mode in ("workers",)
        for fault in RESTARTED
    ]
    if brief:
        chosen = ("in process/hanging", "workers/killed once")
        return [cell for cell in found if cell.name in chosen]
    found += [
        Cell(f"{mode}/{fault}, real process", {"mode": mode, "fault": fault, "once": False, "how": REAL})
        for mode, fault in (("in process", "raising"), ("workers", "killed"))
    ]
    return found


def check(lab: Lab, place: Path, settings: dict[str, Any]) -> Outcome:
    mode, fault, once, how = settings["mode"], settings["fault"], settings["once"], settings.get("how", FORKED)
    expected = ONCE if once else TABLE[fault][mode]
    argv = arguments("maze", extra=[*SETTINGS, *MODES[mode]])
    (place / ORDER).write_text(json.dumps({"fault": fault, "step": AFTER_SAVE if fault == "NaN" else STEP[mode]}))
    run = lab.launcher.start(argv, place, how=how)
    if once:
        run.marked(MARK)
        (place / ORDER).unlink()
    if expected.code == DONE and fault == "stopped" and not once:
        run.marked(MARK)
        time.sleep(STEP_TIMEOUT_S / 4)
        os.kill(run.pid, signal.SIGCONT)
    ended, err = run.end(END_WITHIN_S), run.err
    detected = None if fault == "never done" or once else round(time.monotonic() - last_failure(run), 2)
    message = " ".join(err.split())[-300:]
    problems = [f"still running: {name}" for name in ended.left]
    if ended.code != expected.code:
        problems.append(f"exit code {ended.code}, expected {expected.code}: {message}")
    if not re.search(expected.message, err):
        problems.append(f"no message {expected.message!r}: {message}")
    if "Traceback" in err:
        problems.append(f"traceback: {message}")
    if (
        expected.code in (DIVERGED, FAILED)
        and (messages := sum(line.startswith("dqs-fit:") for line in err.splitlines())) != 1
    ):
        problems.append(f"{messages} messages of the command: {message}")
    if detected is not None and detected > STEP_TIMEOUT_S + DETECTED_WITHIN_S:
        problems.append(f"ended {detected} s after the failure")
    if expected.code != DONE:
        kept = safe_load(place / RUN / "checkpoints" / "last.ckpt")["env_frames"]
        if not kept:
            problems.append("the checkpoint holds no frames")
    (place / ORDER).unlink(missing_ok=True)
    again, err = lab.launcher.run(argv, place)
    if again.code != DONE or again.left:
        problems.append(
            f"with the environment repaired the same command ended with {again}: {' '.join(err.split())[-300:]}"
        )
    frames = safe_load(place / RUN / "checkpoints" / "last.ckpt")["env_frames"]
    if frames != BLOCKS * 16:
        problems.append(f"the run ended at {frames} frames, expected {BLOCKS * 16}")
    return Outcome(problems, {"code": ended.code, "detected_s": detected, "message": message[:200]}, how)


def last_failure(run: Run) -> float:
    """Returns the monotonic time of the last failure of a run's environments."""
    lines = (run.cwd / MARKS / MARK).read_text().splitlines()
    return float(lines[-1].split()[0])


if __name__ == "__main__":
    sys.exit(main("environments", __doc__, cells, check))
