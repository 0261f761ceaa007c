"""One `dqs-fit` process, from its start to its exit. Runs in Ray's workers, so it imports the standard library only."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

POLL_S = 0.2
"""Seconds between two checks for the order to stop."""
LOG = "log.txt"


def execute(command: Sequence[str], folder: Path, stop: Path, cwd: Path, threads: int, gpu: bool) -> tuple[int, float]:
    """Run `dqs-fit` with its output in the run's log, and pass on the order to stop.

    Args:
        command: the command line, of which the first word, dqs-fit, is replaced by this interpreter's own.
        folder: the run directory; `log.txt` in it is added to.
        stop: a file. When it appears the process gets SIGTERM, on which it writes a checkpoint, and is waited for.
        cwd: the working directory of the process.
        threads: of torch, OMP_NUM_THREADS.
        gpu: whether the process may see the GPUs that this worker was given.

    Returns:
        The exit code, negative for a signal, and the seconds taken.
    """
    # A run directory in the environment would be taken in place of the one in the command.
    environment = {name: value for name, value in os.environ.items() if name != "DQS_RUN_DIR"}
    environment["OMP_NUM_THREADS"] = str(threads)
    if not gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with (folder / LOG).open("a") as log:
        print(f"$ {shlex.join(command)}", file=log, flush=True)
        # A session of its own: Ctrl-C in the terminal is for the sweep, which then asks every run once.
        process = subprocess.Popen(
            [sys.executable, "-m", "dqs_lightning.cli.fit", *command[1:]], cwd=cwd, env=environment,
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            asked = False
            while process.poll() is None:
                if not asked and stop.exists():
                    process.terminate()
                    asked = True
                time.sleep(POLL_S)
        finally:
            if process.poll() is None:
                process.terminate()
    return process.returncode, time.monotonic() - start


def last_words(folder: Path) -> str:
    """Return the last message of the latest process in a run's log: dqs-fit's own if there is one, or the last line."""
    file = folder / LOG
    lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
    words = ""
    for line in lines:
        if line.startswith("$ "):
            words = ""
        elif line.strip() and not words.startswith("dqs-fit: "):
            words = line.strip()
    return words
