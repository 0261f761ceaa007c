"""Runs one `dqs-fit` process. Ray's workers import this file, so it imports the standard library only."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

POLL_S = 0.2
"""Seconds between two checks for the stop file."""
LOG = "log.txt"
STOP = ".stop"
"""File in a run's folder that stops this run alone."""


def execute(command: Sequence[str], folder: Path, stop: Path, cwd: Path, threads: int, gpu: bool) -> tuple[int, float]:
    """Runs `dqs-fit`, with its output appended to the run's log; returns its exit code and the seconds taken.

    The first word of the command is replaced by this interpreter's own dqs-fit. When the file `stop` appears, or `STOP`
    in the folder, the process gets SIGTERM, writes a checkpoint, and is waited for. `threads` is torch's
    OMP_NUM_THREADS; `gpu` says whether the process may see the GPUs of this worker. The exit code is negative for a
    signal.
    """
    # A run directory in the environment would replace the one in the command.
    environment = {name: value for name, value in os.environ.items() if name != "DQS_RUN_DIR"}
    environment["OMP_NUM_THREADS"] = str(threads)
    if not gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with (folder / LOG).open("a") as log:
        print(f"$ {shlex.join(command)}", file=log, flush=True)
        # In its own session, Ctrl-C in the terminal reaches the sweep only, which then stops every run once.
        process = subprocess.Popen(
            [sys.executable, "-m", "dqs_lightning.cli.fit", *command[1:]], cwd=cwd, env=environment,
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            while process.poll() is None and not stop.exists() and not (folder / STOP).exists():
                time.sleep(POLL_S)
            process.terminate()
            process.wait()
        finally:
            process.terminate()
    return process.returncode, time.monotonic() - start


def last_words(folder: Path) -> str:
    """Returns the message of the latest process in a run's log: dqs-fit's own if there is one, or the last line."""
    file = folder / LOG
    text = file.read_text(errors="replace") if file.is_file() else ""
    *_, latest = f"\n{text}".split("\n$ ")  # its first line is the command
    lines = [line.strip() for line in latest.splitlines()[1:] if line.strip()]
    return next((line for line in lines if line.startswith("dqs-fit: ")), lines[-1] if lines else "")
