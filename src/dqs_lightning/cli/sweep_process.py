"""Runs one `dqs-fit` process. Ray's workers import this file, so it imports the standard library only."""

import ctypes
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

POLL_S = 0.2
"""Seconds between two checks for the stop file."""
OTHERS = ("DQS_RUN_DIR", "SLURM_", "TORCHELASTIC_", "LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_")
"""Beginnings of variables that a run would take for its own: its run directory, and the ranks that it belongs to."""
LEFT_S = 60.0
"""Seconds for which a process of the same run is waited for."""
PR_SET_PDEATHSIG = 1
CHECKPOINT = Path("checkpoints", "last.ckpt")
MANIFEST = "manifest.json"
"""In the folder of a sweep."""
LOCK = ".lock"
"""Of a run directory (see `run_dir`)."""
LOG = "log.txt"
STOP = ".stop"
"""File in a run's folder that stops this run alone."""


class Result(NamedTuple):
    """How the process of a run has ended.

    Attributes:
        exit_code: negative for a signal.
        wall_s: seconds that it took.
        continued: whether the run's checkpoint was there when it started.
        files: contents of the run's files, by their paths in its folder, where the sweep cannot read that folder.
    """

    exit_code: int
    wall_s: float
    continued: bool
    files: dict[str, bytes]


def execute(command: Sequence[str], folder: Path, stop: Path, cwd: Path, threads: int, gpu: bool) -> Result:
    """Runs `dqs-fit`, with its output appended to the run's log; returns how it ended.

    The first word of the command is replaced by this interpreter's own dqs-fit. When the file `stop` appears, or `STOP`
    in the folder, the process gets SIGTERM, writes a checkpoint, and is waited for. `threads` is torch's
    OMP_NUM_THREADS; `gpu` says whether the process may see the GPUs of this worker. Where the sweep's manifest is not
    beside `stop`, this machine has another file system, and the result has the files of the run. The process is stopped
    when this one dies, and a process of the run that another worker has left is waited for, at most LEFT_S.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OTHERS)}
    environment["OMP_NUM_THREADS"] = str(threads)
    if not gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    folder.mkdir(parents=True, exist_ok=True)
    continued = (folder / CHECKPOINT).exists()
    _wait_until_free(folder / LOCK)
    start = time.monotonic()
    with (folder / LOG).open("a") as log:
        print(f"$ {shlex.join(command)}", file=log, flush=True)
        # In its own session, Ctrl-C in the terminal reaches the sweep only, which then stops every run once.
        process = subprocess.Popen(
            [sys.executable, "-m", "dqs_lightning.cli.fit", *command[1:]], cwd=cwd, env=environment,
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=_end_with_parent,
        )  # fmt: skip
        try:
            while process.poll() is None and not stop.exists() and not (folder / STOP).exists():
                time.sleep(POLL_S)
            process.terminate()
            process.wait()
        finally:
            process.terminate()
    shared = (stop.parent / MANIFEST).exists()
    return Result(process.returncode, time.monotonic() - start, continued, {} if shared else contents(folder))


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the contents of all files in a folder, by their paths in it."""
    files = (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def write(files: Mapping[str, bytes], folder: Path) -> None:
    """Writes what `contents` has returned."""
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def _end_with_parent() -> None:
    """Lets the kernel send SIGTERM to this process when its parent dies. Called between fork and exec."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_until_free(lock: Path) -> None:
    """Waits while another process, which is saving, holds the lock of a run directory."""
    until = time.monotonic() + LEFT_S
    while lock.is_file() and time.monotonic() < until:
        with lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                time.sleep(POLL_S)


def last_words(folder: Path) -> str:
    """Returns the message of the latest process in a run's log: dqs-fit's own if there is one, or the last line."""
    file = folder / LOG
    text = file.read_text(errors="replace") if file.is_file() else ""
    *_, latest = f"\n{text}".split("\n$ ")  # its first line is the command
    lines = [line.strip() for line in latest.splitlines()[1:] if line.strip()]
    return next((line for line in lines if line.startswith("dqs-fit: ")), lines[-1] if lines else "")
