"""Hooks of the soak: load every saved checkpoint, sample the processes' resources, and repeat a command."""

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.hooks import note, wrap
from faults.runs import all_processes, session_of
from faults.usage import shared_files, usage

SAVE = "dqs_lightning.run.checkpoint:RunCheckpoint.save"
FIT = "dqs_lightning.cli.fit:main"


def sample_after_saves() -> None:
    """After each save, load the checkpoint and append the environment steps and the usage to `marks/usage`.

    The names of its files in shared memory are appended to `marks/shared`.
    """
    saved_at = -1

    def at(original: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        nonlocal saved_at
        result = original(*arguments, **keywords)
        callback, trainer = arguments[:2]
        if trainer.global_step != saved_at:
            saved_at = trainer.global_step
            _load(Path(callback.dirpath))
            gc.collect()
            pids = _session()
            note("usage", " ".join(map(str, (trainer.datamodule.env_frames, *usage(pids)))))
            for name in set().union(*map(shared_files, pids)):
                note("shared", name)
        return result

    wrap(SAVE, [0], at)


def _load(folder: Path) -> None:
    from dqs_lightning.agents import load_agent
    from dqs_lightning.checkpoint.archive import safe_load

    load_agent(folder / "last.ckpt")
    for file in folder.glob("step=*.pt"):
        safe_load(file)


def continue_often(runs: int, steps: int) -> None:
    """Run the command `runs` times in one process, each time with a larger part of `steps` frames."""

    def at(original: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        argv = sys.argv
        for index in range(1, runs + 1):
            sys.argv = [*argv, f"--data.total_frames={steps * index // runs}"]
            if code := original(*arguments, **keywords):
                return code
        return 0

    wrap(FIT, [0], at)


def _session() -> list[int]:
    """Returns the processes in this process's session."""
    session = os.getsid(0)
    return [pid for pid in all_processes() if session_of(pid) == session]
