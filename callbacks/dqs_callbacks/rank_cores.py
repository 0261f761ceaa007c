"""Gives each rank that trains on CPUs its own cores."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback

from dqs_lightning.collection.data import OnlineData

THREADS = Path("/proc/self/task")
"""Where Linux lists the threads of this process."""


class RankCores(Callback):
    """Divides the cores of a machine among the ranks that train on its CPUs, by their CPU affinity, on Linux.

    Otherwise the system moves ranks, and the threads that exchange their gradients, between the cores, and all ranks
    wait for the one that has lost its own (docs/performance.md). Environments of a rank use its cores too. Nothing is
    changed on a GPU, with fewer cores than ranks, with `data.collector=Ray`, whose actors need other cores, or where
    the process may not use all cores of the machine: then torchrun, SLURM, taskset or a container has already chosen.

    Args:
        enabled: false switches it off.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._before: set[int] = set()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by a connector
        others = isinstance(data, OnlineData) and data.collector == "Ray"
        on_cpu = trainer.num_devices > 1 and trainer.strategy.root_device.type == "cpu"
        if not self.enabled or stage != "fit" or others or not on_cpu:
            return
        if share := own_share(trainer.local_rank, trainer.num_devices):
            self._before = os.sched_getaffinity(0)
            restrict(share)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._before:
            restrict(self._before)
            self._before = set()


def own_share(index: int, processes: int) -> list[int]:
    """Returns the cores of one of several processes, as even as possible; none where they are not to be divided."""
    if not hasattr(os, "sched_getaffinity"):  # not on Linux
        return []
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < max(processes, os.cpu_count() or 1):
        return []
    return cores[index * len(cores) // processes : (index + 1) * len(cores) // processes]


def restrict(cores: Iterable[int]) -> None:
    """Restricts all present threads of this process to these cores; later ones inherit them."""
    for thread in THREADS.iterdir():
        with contextlib.suppress(ProcessLookupError):  # a thread that has ended meanwhile
            os.sched_setaffinity(int(thread.name), cores)
