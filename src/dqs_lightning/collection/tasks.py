"""Replay that is balanced over the tasks of `MultiTask`: every task has the same share of the buffer and of a batch."""

import math
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data.replay_buffers import Sampler

from dqs_lightning.agents import Agent
from dqs_lightning.envs import Environment

if TYPE_CHECKING:
    from dqs_lightning.collection.data import OnlineData


class Stratified(Sampler):  # type: ignore[misc]  # torchrl has no types
    """Draws rows of which every task in turn has one, uniformly from those of the task.

    Args:
        tasks: number of tasks. Row i of the buffer is of task i % tasks (see `in_turn`).
    """

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.tasks = tasks

    def sample(self, storage: Any, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
        rows = torch.arange(batch_size, device=storage.device)
        drawn = torch.randint(len(storage) // self.tasks, (batch_size,), device=storage.device)
        return drawn * self.tasks + rows % self.tasks, {}

    def _empty(self) -> None:
        """Has no state."""

    def state_dict(self) -> dict[str, Any]:
        """Has no state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Has no state."""

    dumps = loads = load_state_dict


def in_turn(block: TensorDictBase, tasks: int, workers: int) -> TensorDictBase:
    """Flattens transitions [E, T] so that the tasks take turns, one row each.

    Args:
        block: of E members, in each worker in consecutive groups of E / (workers tasks), one group for each task.
        tasks: number of tasks.
        workers: processes that have the members; 0 as 1.
    """
    if tasks == 1:
        return block.reshape(-1)
    groups = max(1, workers), tasks
    members = block.shape[0] // math.prod(groups)
    return block.unflatten(0, (*groups, members)).permute(0, 2, 3, 1).reshape(-1)


def check_members(environment: Environment, num_envs: int, workers: int) -> None:
    """Raises a ValueError unless each task of the environment has as many of the members, in each worker."""
    count = len(environment.tasks)
    if num_envs % (count * max(1, workers)):
        each = f" for each of workers={workers}" if workers else ""
        raise ValueError(f"num_envs={num_envs}: must be a multiple of {count}, one environment for each task{each}")


def check_agent(agent: Agent, data: "OnlineData") -> None:
    """Raises a ValueError for an agent that does not know that some tasks have fewer actions than others."""
    dims = data.action_dims or []
    if len(set(dims)) > 1 and list(agent.action_dims or ()) != dims:
        raise ValueError(
            f"{type(agent).__name__}: action_dims={agent.action_dims} must be {dims}, the dimensions of the tasks of "
            f"{data.environment.name}"
        )
