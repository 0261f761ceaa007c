"""A maze with one fault, which occurs once in each batch of environments whose first seed is selected."""

import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDictBase

from dqs_lightning.envs import Maze
from dqs_lightning.envs.maze import MazeBatch

RETURNED = {
    "wrong shape": r"step returned observation of shape \[\d, 3\] and torch.float32, not \[\d, 2\] and torch.float32",
    "wrong dtype": r"step returned observation of shape \[\d, 2\] and torch.float64, not \[\d, 2\] and torch.float32",
    "no reward": "step returned no reward",
}
"""Error messages for wrong results."""


class Faulty(Maze):
    """Fails in a step, or in a reset after the first.

    Args:
        fault: the kind of fault; see `FaultyBatch.fail`.
        at: number of the step or reset that fails, from 1.
        seeds: first seeds of the batches that fail; None: all.
        call: "step" or "reset"; with "make" the construction fails.
    """

    def __init__(self, fault: str, at: int = 3, seeds: Sequence[int] | None = None, call: str = "step") -> None:
        super().__init__(label="faulty", horizon=6, step=0.02)
        self.fault, self.at, self.seeds, self.call = fault, at, seeds, call

    def make(self, num_envs: int, seed: int) -> MazeBatch:
        if self.call == "make":
            raise ValueError("cannot be constructed")
        return FaultyBatch(self, num_envs, seed)


class FaultyBatch(MazeBatch):
    def __init__(self, faulty: Faulty, num_envs: int, seed: int) -> None:
        super().__init__(faulty, num_envs, seed)
        self.faulty, self.calls = faulty, 0
        self.fails = faulty.seeds is None or seed in faulty.seeds

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        return self.fail("reset", super()._reset(tensordict, **kwargs))

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        return self.fail("step", super()._step(tensordict))

    def fail(self, call: str, found: TensorDictBase) -> TensorDictBase:
        self.calls += call == self.faulty.call
        if not self.fails or call != self.faulty.call or self.calls != self.faulty.at:
            return found
        match self.faulty.fault:
            case "raising":
                raise FloatingPointError("the physics\ndiverged")
            case "sleeping":
                time.sleep(1000)
            case "busy":
                while True:
                    pass
            case "waiting":
                threading.Event().wait()
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exiting":
                os._exit(7)
            case "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "wrong shape":
                found["observation"] = torch.zeros(*found.batch_size, 3)
            case "wrong dtype":
                found["observation"] = found["observation"].double()
            case "no reward":
                del found["reward"]
        return found


class FailsForThree(Faulty):
    """A faulty environment only if it has three members, which are those of a callback."""

    def make(self, num_envs: int, seed: int) -> MazeBatch:
        batch = super().make(num_envs, seed)
        batch.fails = num_envs == 3
        return batch


def ended(pid: int, within_s: float = 2) -> bool:
    """Whether a process ends within a time limit."""
    for _ in range(round(within_s / 0.05)):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False
