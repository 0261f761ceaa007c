"""Continues a run: checks its checkpoint before anything is written; ends the ranks that were started."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L

from dqs_lightning.agents import Agent
from dqs_lightning.checkpoint.archive import CheckpointError, load_run, verified_digest
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.run.checkpoint import own_file
from dqs_lightning.run.resume import FINISHED, SETTINGS, changes, check_checkpoint, settings_of

WAIT_S = 20.0
"""Seconds after which other ranks that have not ended are killed."""


def continued(path: Path, agent: Agent, data: OnlineData, trainer: L.Trainer) -> dict[str, tuple[Any, Any]] | None:
    """Checks that a checkpoint can be continued with these settings; prints those that change.

    Returns:
        The changed settings, (old, new) by key; None where the run was finished and is not made longer.

    Raises:
        CheckpointError: when it cannot be continued; the message names the file, or the key and both values.
    """
    checkpoint = load_run(path)
    check_checkpoint(checkpoint, str(path), trainer.world_size)
    changed = changes(checkpoint[SETTINGS], settings_of(agent, data), str(path))
    if trainer.is_global_zero:
        for rank in range(trainer.world_size):
            own, digest = own_file(path, checkpoint, rank)
            if verified_digest(own) != digest:
                raise CheckpointError(f"{own}: does not belong to {path.name}, which names another digest")
        for key, (old, new) in changed.items():
            print(f"{key}: {old} -> {new}", file=sys.stderr)
    clock = data.source(agent, trainer.world_size).clock
    clock.frames = checkpoint["env_frames"]
    callbacks = checkpoint["callbacks"].values()
    interrupted = any(isinstance(state, dict) and state.get("interrupted") for state in callbacks)
    done = checkpoint[FINISHED] and clock.updates >= clock.total_updates and not interrupted
    return None if done else changed


def started_ranks(trainer: L.Trainer) -> list[subprocess.Popen[bytes]]:
    """Returns the processes of other ranks that Lightning started from this one."""
    return list(getattr(trainer.strategy.launcher, "procs", []))


def wait_for_ranks(trainer: L.Trainer) -> None:
    """Waits until the other ranks have ended; kills those that have not after WAIT_S."""
    for process in started_ranks(trainer):
        try:
            process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
