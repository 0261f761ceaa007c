"""Interface of an environment's configuration."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from torchrl.envs import EnvBase

from dqs_lightning.ranges import Count, checked


class EnvironmentFailure(RuntimeError):
    """An environment raised, hung or died; the message names the environment and the cause."""


def one_line(error: BaseException) -> str:
    """The type and the text of an exception, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


@contextmanager
def refused_by(name: str) -> Iterator[None]:
    """Turns any exception of an environment's construction into a ValueError: one line that begins with `name`."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) if type(error) is ValueError else one_line(error)
        raise ValueError(f"{name}: {reason}") from error


class Environment(ABC):
    """A recipe for batched TorchRL environments. Cheap to construct; nothing starts before `make`.

    Subclass it and write `name` and `make`; the subclass can then be named in a config.

    Args:
        action_repeat: environment frames for each action; >= 1. Rewards are summed over them.

    Raises:
        ValueError: when action_repeat < 1.
    """

    @checked
    def __init__(self, action_repeat: Count = 1) -> None:
        self.action_repeat = action_repeat

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name for run directories and reports, without slashes."""

    @abstractmethod
    def make(self, num_envs: int, seed: int) -> EnvBase:
        """An environment of batch size [num_envs], whose i-th member is seeded with seed + i.

        It reads `action` in [-1, 1] and writes float32 `observation` and `reward` [num_envs, 1], and boolean
        `terminated`, `truncated` and `done`.

        Raises:
            ValueError: when it cannot be constructed or has other spaces; one line that names it and the cause.
        """
