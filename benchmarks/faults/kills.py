"""A process killed at any moment around a save leaves a run that the same command continues exactly.

200 SIGKILLs, 1 and 2 ranks, half of them with TMPDIR on another file system. Each is sent at a uniformly drawn time
in the cycle of a save (the save and the updates until the next one begins) and kills all ranks, only the first or only
the second. Afterwards the same command must end with exit code 0, with the weights, optimizer, replay, random states,
scores and metrics of an uninterrupted run, and must leave no temporary file.

    PYTHONPATH=benchmarks python -m faults.kills --jobs 2
"""

import random
import shutil
import signal
import sys
import tempfile
import time
from os import kill
from pathlib import Path
from typing import Any

from faults.compare import unequal
from faults.hooks import hook, log_calls
from faults.runs import FORKED, REAL, Run
from faults.study import Cell, Lab, Outcome, main
from faults.tasks import RUN, arguments

KILLS = 200
OTHER_FILE_SYSTEM = Path("/dev/shm")
SAVES = "saves"
HOOKS = [
    hook(log_calls, target="dqs_lightning.run.checkpoint:RunCheckpoint.save", mark=SAVES, label="save"),
    hook(log_calls, target="dqs_lightning.run.checkpoint:atomic_save", mark=SAVES),  # rank files
    hook(log_calls, target="dqs_lightning.checkpoint.archive:atomic_save", mark=SAVES),  # last.ckpt
]
EVERY = ["--checkpoint.every_n_updates=4"]
BEGIN = " begin save"
OTHERS_END_WITHIN_S = 30.0
TEMPORARY = (".*", "*.tmp*", "*.part*")


def cells(brief: bool) -> list[Cell]:
    """Lists 200 kills with different seeds, and one of each kind with real processes; brief: two of them."""
    kinds = [("1 rank", 1, "all", KILLS // 2)]
    kinds += [(f"2 ranks, {whom}", 2, whom, n) for whom, n in (("all", 50), ("first", 25), ("second", 25))]
    found: list[Cell] = []
    for kind, ranks, whom, number in kinds:
        for index in range(number):
            elsewhere = index % 2 == 0
            settings = {"ranks": ranks, "whom": whom, "elsewhere": elsewhere, "seed": len(found), "how": FORKED}
            found.append(Cell(f"{kind}/{'other TMPDIR' if elsewhere else 'own TMPDIR'}/{index:03d}", settings))
    first = [next(cell for cell in found if cell.name.startswith(f"{kind[0]}/")) for kind in kinds]
    real = [Cell(f"{cell.name}, real process", {**cell.settings, "how": REAL}) for cell in first]
    return first[:2] if brief else [*found, *real]


def check(lab: Lab, place: Path, settings: dict[str, Any]) -> Outcome:
    ranks, draw = settings["ranks"], random.Random(settings["seed"])
    argv = arguments("maze", ranks=ranks, extra=EVERY)
    reference = lab.reference(f"kills-{ranks}", argv, ranks, hooks=HOOKS)
    begins = [time_s for time_s, text in logged(reference) if text.endswith(BEGIN)]
    cycle_s = (begins[-1] - begins[0]) / (len(begins) - 1)
    tmpdir = Path(tempfile.mkdtemp(prefix="faults-", dir=OTHER_FILE_SYSTEM)) if settings["elsewhere"] else place / "tmp"
    tmpdir.mkdir(exist_ok=True)
    try:
        for _ in range(5):
            shutil.rmtree(place / RUN, ignore_errors=True)
            run = lab.launcher.start(argv, place, ranks=ranks, hooks=HOOKS, tmpdir=tmpdir, how=settings["how"])
            if strike(
                run, settings["whom"], save=draw.randint(1, len(begins) - 6), delay_s=draw.uniform(0, 2 * cycle_s)
            ):
                break
        else:
            return Outcome(["each of five runs had ended before it could be killed"], {})
        ended = run.end(OTHERS_END_WITHIN_S)
        left = temporaries(place, tmpdir)
        observed = {"where": where(place), "temporary_files": len(left), "others_ended_s": ended.seconds}
        problems = [f"still running after {OTHERS_END_WITHIN_S:.0f} s: {name}" for name in ended.left]
        again, err = lab.launcher.run(argv, place, ranks=ranks, tmpdir=tmpdir)
        if again.code != 0:
            problems.append(f"the same command ended with {again.code}: {err.strip()[-400:]}")
        problems += [f"still running: {name}" for name in again.left]
        problems += [f"unequal: {name}" for name in unequal(reference / RUN, place / RUN)]
        problems += [f"orphan: {path.name}" for path in temporaries(place, tmpdir)]
        return Outcome(problems, observed, settings["how"])
    finally:
        if settings["elsewhere"]:
            shutil.rmtree(tmpdir, ignore_errors=True)


def strike(run: Run, whom: str, save: int, delay_s: float) -> bool:
    """Kill ranks `delay_s` after a save has begun; returns False if the run had already ended."""
    run.marked(f"{SAVES}-0")
    while run.poll() is None and sum(text.endswith(BEGIN) for _, text in logged(run.cwd)) < save:
        time.sleep(0.002)
    time.sleep(delay_s)
    if run.poll() is not None:
        return False
    for rank, victim in enumerate(("first", "second")):
        pids = {int(text.split()[0]) for _, text in logged(run.cwd, rank)}
        for pid in pids if whom in ("all", victim) else ():
            kill(pid, signal.SIGKILL)
    return True


def logged(place: Path, rank: int = 0) -> list[tuple[float, str]]:
    """Returns times and texts of a rank's log of saves."""
    file = place / "marks" / f"{SAVES}-{rank}"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(float(time_s), text) for time_s, _, text in (line.partition(" ") for line in lines)]


def where(place: Path) -> str:
    """Describes what the first rank was doing when it was killed."""
    texts = [text.split(" ", 1)[1] for _, text in logged(place)]
    within = texts[::-1].index("begin save") < ([*texts[::-1], "end save"]).index("end save")
    if not within:
        return "between saves"
    verb, _, what = texts[-1].partition(" ")
    name = "last.ckpt" if what == "last.ckpt" else "start" if what == "save" else "rank file"
    return f"in {name}" if verb == "begin" else f"after {name}"


def temporaries(place: Path, tmpdir: Path) -> list[Path]:
    """Returns temporary checkpoint files in the run directory and all files in TMPDIR."""
    inside = {path for pattern in TEMPORARY for path in (place / RUN / "checkpoints").glob(pattern)}
    return sorted(inside | set(tmpdir.iterdir()))


if __name__ == "__main__":
    sys.exit(main("kills", __doc__, cells, check))
