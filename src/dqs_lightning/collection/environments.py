"""The environments of a run: their sizes, and how they are made."""

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cached_property, partial

import lightning as L

from dqs_lightning.envs import Environment
from dqs_lightning.envs.restarts import Restarts
from dqs_lightning.envs.transformed import transformed
from dqs_lightning.envs.transforms import Transform
from dqs_lightning.envs.watched import Watched, watched
from dqs_lightning.envs.workers import WorkerBatch


class EnvironmentData(L.LightningDataModule):
    """Base class of data that an environment gives.

    Args:
        environment: the task.
        num_envs: environments of each rank; >= 1.
        workers: processes among which they are divided; 0: none, or a divisor of num_envs.
        step_timeout_s: seconds after which a step counts as hanging; > 0.
        transforms: of observations and rewards, in this order.
    """

    def __init__(
        self,
        environment: Environment,
        num_envs: int,
        workers: int,
        step_timeout_s: float,
        transforms: Sequence[Transform],
    ) -> None:
        super().__init__()
        if workers and num_envs % workers:
            raise ValueError(f"workers={workers}: must be 0 or a divisor of num_envs={num_envs}")
        self.environment, self.num_envs, self.workers = environment, num_envs, workers
        self.step_timeout_s, self.transforms = step_timeout_s, list(transforms)
        self._makes = transformed(environment, self.transforms)
        self.restarts = Restarts()
        """Counts replaced worker processes."""

    @cached_property
    def _dimensions(self) -> tuple[int, int]:
        with closing(self.make_environment(1, seed=0)) as env:
            return env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]

    @property
    def observation_dim(self) -> int:
        return self._dimensions[0]

    @property
    def action_dim(self) -> int:
        return self._dimensions[1]

    @property
    def action_dims(self) -> list[int] | None:
        """See `Environment.action_dims`."""
        return self.environment.action_dims

    @property
    def objectives(self) -> int:
        """The number of objectives of the environment's reward vector; 0: its reward is one number."""
        return self.environment.objectives

    def make_environment(self, num_envs: int, seed: int) -> Watched:
        """Environments in this process, whose failures raise `EnvironmentFailure`."""
        return self.environment_maker(num_envs, seed)()

    def environment_maker(self, num_envs: int, seed: int) -> Callable[[], Watched]:
        """Returns what makes the environments, in any process."""
        return partial(watched, self._makes, self.environment.name, num_envs, seed, self.step_timeout_s)

    def training_environment(self, seed: int) -> Watched | WorkerBatch:
        """Environments for collecting: in this process, or divided among `workers` processes."""
        if not self.workers:
            return self.make_environment(self.num_envs, seed)
        return WorkerBatch(self._makes, self.num_envs, self.workers, seed, self.step_timeout_s, self.restarts)
