"""Lightning's validation data: one batch, the returns of whole episodes of the agent that is validated."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import lightning as L
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from dqs_lightning.envs import EnvironmentFailure
from dqs_lightning.evaluation.returns import STEP_LIMIT, episode_returns, policy_of
from dqs_lightning.stop_signal import STOP, StopInterrupt

if TYPE_CHECKING:
    from dqs_lightning.agents import Agent
    from dqs_lightning.collection.data import OnlineData

FAILURES = (EnvironmentFailure, StopInterrupt)
"""Exceptions that end an evaluation on all ranks."""


@dataclass(frozen=True)
class Evaluation:
    """How a policy is evaluated.

    Attributes:
        episodes: episodes, run side by side; >= 1.
        deterministic: use the noise-free policy.
        best_of: draw this many actions and take the one of highest Q; None: as the agent acts.
        max_steps: agent steps after which an evaluation ends, with a warning, although episodes have not; >= 1.
    """

    episodes: int = 10
    deterministic: bool = False
    best_of: int | None = None
    max_steps: int = STEP_LIMIT


class EvaluationLoader:
    """Yields one batch, a dictionary with `return`: the returns of `data.evaluation.episodes` episodes, [episodes].

    Of several tasks, each has as many episodes. `return` is then the mean over tasks of the i-th episode of each, and
    `return/NAME` has those of a task.

    Rank zero runs the episodes, all ranks receive the returns. `torch.initial_seed` decides the episodes and the
    policy's random numbers; the random state is restored afterwards. In a sanity check the episodes end after
    `Trainer.num_sanity_val_steps` steps.

    Args:
        data: makes the environments and holds the settings.
        trainer: validates the agent.
    """

    def __init__(self, data: "OnlineData", trainer: L.Trainer) -> None:
        self.data, self.trainer = data, trainer

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        returns, failure = torch.empty(0), None
        if self.trainer.is_global_zero:
            with isolate_rng():  # restores the random state only if no exception passes through it
                try:
                    with STOP.interrupting():
                        returns = self._returns()
                except FAILURES as error:
                    failure = error
        if self.trainer.world_size > 1:
            kind = None if failure is None else [isinstance(failure, kind) for kind in FAILURES].index(True)
            returns, kind = self.trainer.strategy.broadcast((returns, kind))
            if kind is not None and failure is None:
                failure = FAILURES[kind]("another rank has failed and gives the cause")
        if failure is not None:
            raise failure
        yield by_task(returns, self.data.environment.tasks)

    def _returns(self) -> Tensor:
        evaluation, agent = self.data.evaluation, cast("Agent", self.trainer.lightning_module)
        policy = policy_of(agent, evaluation.deterministic, evaluation.best_of)
        seed = torch.initial_seed()
        torch.manual_seed(seed)
        steps = int(min(self.trainer.num_sanity_val_steps, evaluation.max_steps))
        episodes = evaluation.episodes * len(self.data.environment.tasks)
        with closing(self.data.make_environment(episodes, seed % 2**31)) as env:
            max_steps = steps if self.trainer.sanity_checking else None
            return episode_returns(env, policy, max_steps=max_steps, step_limit=evaluation.max_steps).cpu()


def by_task(returns: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
    """Returns the `return` of each episode, or of several tasks their mean and that of each, `return/NAME`.

    Args:
        returns: of as many episodes of each task, one task after the other.
        tasks: their names.
    """
    if len(tasks) == 1:
        return {"return": returns}
    each = returns.view(len(tasks), -1)
    return {"return": each.mean(0), **{f"return/{name}": found for name, found in zip(tasks, each, strict=True)}}


def combined(loader: Iterable[Any], mode: Literal["max_size_cycle", "sequential"]) -> CombinedLoader:
    """Returns the loader as Lightning would wrap it itself, without a warning about a deprecated class of torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return CombinedLoader(loader, mode)
