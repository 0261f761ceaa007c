"""Interface of an environment factory, and the base class of the environments that it makes."""

import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from dqs_lightning.envs.goals import Goals
from dqs_lightning.envs.interface import Interface, top_modules
from dqs_lightning.ranges import Count, checked


class EnvironmentFailure(RuntimeError):
    """An environment raised, hung or died; the message names the environment and the cause."""


def one_line(error: BaseException) -> str:
    """The type and the text of an exception, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


@contextmanager
def constructing(name: str) -> Iterator[None]:
    """Turns any exception of an environment's construction into a ValueError: one line that begins with `name`.

    MuJoCo's notes that a model uses deprecated attributes are not shown.
    """
    log = logging.getLogger("absl")
    log.addFilter(_is_not_deprecation)
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) if type(error) is ValueError else one_line(error)
        raise ValueError(f"{name}: {reason}") from error
    finally:
        log.removeFilter(_is_not_deprecation)


def _is_not_deprecation(record: logging.LogRecord) -> bool:
    return "is deprecated" not in record.getMessage()


class Environment(ABC):
    """Factory of batched TorchRL environments. Cheap to construct; nothing starts before `make`.

    Subclass it and write `name` and `make`; the subclass can then be named in a config.

    Args:
        action_repeat: environment frames for each action; >= 1. Rewards are summed over them.

    Attributes:
        physics_errors: steps in which the simulation diverged, of all environments that it made in this process; None
            where none can.
    """

    physics_errors: int | None = None
    _warned = False

    @checked
    def __init__(self, action_repeat: Count = 1) -> None:
        self.action_repeat = action_repeat

    @property
    def untransformed(self) -> "Environment":
        """The environment under all transforms: itself where there are none."""
        return self

    @property
    def objectives(self) -> int:
        """The number of objectives of a reward vector (see `Objectives`); 0: the reward is one number."""
        return 0

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name for run directories and reports, without slashes."""

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks among which the members of a batch are divided (see `MultiTask`); one name without."""
        return [self.name]

    @property
    def action_dims(self) -> list[int] | None:
        """Dimensions of the action of each task, of which there are several; None: there is one task."""
        return None

    @abstractmethod
    def make(self, num_envs: int, seed: int) -> EnvBase:
        """An environment of batch size [num_envs], whose i-th member is seeded with seed + i.

        It reads `action` in [-1, 1] and writes float32 `observation` and `reward` [num_envs, 1], and boolean
        `terminated`, `truncated` and `done`.

        Raises:
            ValueError: when it cannot be constructed or has other spaces; one line that names it and the cause.
        """

    def interface(self) -> Interface:
        """Describes the observation, the action and the time of the environment; `dqs-export` writes it to its file.

        Raises:
            ValueError: when the environment cannot be constructed, as `make` does.
        """
        return Interface(modules=top_modules(type(self)))

    def count_diverged(self, number: int, cause: str = "") -> None:
        """Adds to `physics_errors`; the first simulation of a process that diverges is a warning."""
        self.physics_errors = (self.physics_errors or 0) + number
        if number and not Environment._warned:
            Environment._warned = True
            warnings.warn(
                f"{self.name}: a simulation diverged, and its episode ended as terminated{cause and f' ({cause})'}; "
                "this is reported once, further ones are counted in `physics_errors`",
                RuntimeWarning,
                stacklevel=2,
            )

    def hindsight_goals(self) -> Goals:
        """Returns the goals of the task, for hindsight relabelling.

        Raises:
            ValueError: when it has none; one line.
        """
        raise ValueError(f"{type(self).__name__} ({self.name}) is no goal environment")


class Batch(EnvBase):
    """Base class of batched environments on the CPU. Subclass it and write `_begin`, `_observed` and `_step`.

    Args:
        num_envs: batch size.
        observation_dim: dimension of the observation.
        action_dim: dimension of the action.
        further: specs of further entries beside the observation, by key.
    """

    batch_locked = True

    def __init__(self, num_envs: int, observation_dim: int, action_dim: int, **further: Any) -> None:
        super().__init__(device="cpu", batch_size=[num_envs])
        self._restored = False
        """Whether the next reset returns to a snapshot and starts no episodes."""
        observation = Unbounded(shape=(num_envs, observation_dim))
        flag = Categorical(2, shape=(num_envs, 1), dtype=torch.bool)
        self.observation_spec = Composite(observation=observation, **further, shape=(num_envs,))
        self.action_spec = Bounded(-1, 1, shape=(num_envs, action_dim), dtype=torch.float32)
        self.reward_spec = Unbounded(shape=(num_envs, 1))
        self.full_done_spec = Composite(done=flag, terminated=flag.clone(), truncated=flag.clone(), shape=(num_envs,))

    @abstractmethod
    def _begin(self, members: list[int]) -> None:
        """Starts a new episode of each of these members."""

    @abstractmethod
    def _observed(self) -> dict[str, Tensor]:
        """Returns the observations of all members, and further entries, by key."""

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        if not self._restored:
            self._begin(chosen(tensordict, self.batch_size[0]).nonzero().flatten().tolist())
        self._restored = False
        running = torch.zeros(*self.batch_size, 1, dtype=torch.bool)
        return self._transition(running, running.clone())

    def _transition(self, terminated: Tensor, truncated: Tensor, **entries: Tensor) -> TensorDictBase:
        """Returns the result of a step or a reset: the observations, the entries given, and the flags."""
        flags = {"done": terminated | truncated, "terminated": terminated, "truncated": truncated}
        # Without checks of shapes and devices: they take as long as a step of a cheap environment.
        return TensorDict._new_unsafe({**self._observed(), **entries, **flags}, self.batch_size, self.device)


def chosen(tensordict: TensorDictBase | None, num_envs: int) -> Tensor:
    """Returns a mask [num_envs] of the members that a call of `_reset` is for."""
    if tensordict is not None and "_reset" in tensordict:
        mask: Tensor = tensordict["_reset"].reshape(-1)
        return mask
    return torch.ones(num_envs, dtype=torch.bool)
