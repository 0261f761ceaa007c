"""A maze whose environments fail as specified in a file of the working folder, or not at all without the file."""

import json
import os
import signal
import time
from pathlib import Path

import torch
from tensordict import TensorDictBase

from dqs_lightning.envs import Maze
from dqs_lightning.envs.maze import MazeBatch
from faults.hooks import note

ORDER = Path("fault")
"""Contains {"fault": name, "step": n}: the fault in the n-th step of each environment after its construction."""
MARK = "failed"
HANG_S = 3600.0


class Faulty(Maze):
    """The maze with four goals, whose environments fail as specified in the file `fault`."""

    def make(self, num_envs: int, seed: int) -> "FaultyBatch":
        return FaultyBatch(self, num_envs, seed)


class FaultyBatch(MazeBatch):
    """Environments that fail as specified in the file `fault`; see `Faulty`."""

    def __init__(self, maze: Maze, num_envs: int, seed: int) -> None:
        super().__init__(maze, num_envs, seed)
        self._order = json.loads(ORDER.read_text()) if ORDER.exists() else None
        self._stepped = 0

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        found = super()._step(tensordict)
        self._stepped += 1
        if self._order is None:
            return found
        if self._order["fault"] == "never done":
            for key in ("done", "terminated", "truncated"):
                found[key] = torch.zeros_like(found[key])
        elif self._stepped == self._order["step"]:
            note(MARK)
            fail(self._order["fault"], found)
        return found


def fail(fault: str, found: TensorDictBase) -> None:
    """Fail now, or corrupt the result of a step."""
    match fault:
        case "raising":
            raise RuntimeError("the simulator is unstable")
        case "hanging":
            time.sleep(HANG_S)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "NaN":
            found["observation"][0, 0] = torch.nan
        case "wrong shape":
            found["observation"] = found["observation"].repeat(1, 2)
        case "wrong dtype":
            found["observation"] = found["observation"].double()
