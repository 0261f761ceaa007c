"""Ranks of a run that another program, torchrun or SLURM, has started on one or several nodes."""

import os
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import lightning as L
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy

from dqs_lightning.cli.errors import InputError, refusing

T = TypeVar("T")


class Launch(NamedTuple):
    """The processes that a program has started for one run.

    Attributes:
        program: its name.
        devices: processes of each node.
        nodes: machines.
    """

    program: str
    devices: int
    nodes: int


def launched() -> Launch | None:
    """Returns what torchrun or SLURM has started this process in; None where neither has.

    Raises:
        InputError: when SLURM has started an unequal number of tasks on the nodes.
    """
    if TorchElasticEnvironment.detect():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        return Launch("torchrun", devices, int(os.environ["WORLD_SIZE"]) // devices)
    if SLURMEnvironment.detect():
        tasks, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ.get("SLURM_NNODES", "1"))
        if tasks % nodes:
            raise InputError(f"SLURM_NTASKS={tasks}: must be a multiple of SLURM_NNODES={nodes}; set --ntasks-per-node")
        return Launch("SLURM", tasks // nodes, nodes)
    return None


class Ranks:
    """The ranks of a run, as far as another program has started them; otherwise this process alone.

    Construction waits for all of them and connects them, with the strategy's own backend and cluster environment.

    Args:
        trainer: a trainer of the same devices, nodes and strategy as the run's.

    Raises:
        InputError: when the program has started another number of processes than the trainer expects.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        strategy = trainer.strategy
        self._strategy = strategy if launched() and isinstance(strategy, DDPStrategy) else None
        if self._strategy is not None and self._strategy.cluster_environment is not None:
            with refusing("trainer: ", ValueError):
                self._strategy.cluster_environment.validate_settings(trainer.num_devices, trainer.num_nodes)
            self._strategy.setup_environment()

    def from_first(self, choose: Callable[[], T]) -> T:
        """Returns what `choose` returns in the first rank. An InputError there is raised in all of them."""
        if self._strategy is None:
            return choose()
        found: tuple[T | None, str | None] = None, None
        if self._strategy.global_rank == 0:
            try:
                found = choose(), None
            except InputError as error:
                found = None, str(error)
        chosen, refused = self._strategy.broadcast(found)
        if refused is not None:
            raise InputError(refused)
        return chosen  # type: ignore[return-value]  # None only where `choose` returns None
