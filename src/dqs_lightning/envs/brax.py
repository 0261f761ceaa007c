"""Brax: locomotion tasks, simulated in batches on a GPU."""

from collections.abc import Iterable
from typing import Any

from dqs_lightning.envs.jax_episodes import Simulation
from dqs_lightning.envs.simulated import Simulated, simulator_device
from dqs_lightning.ranges import Count, checked


class Brax(Simulated):
    """A task of Brax: `data.num_envs` simulations advance in one call on JAX's device.

    A simulation that diverges ends its episode as terminated.

    Args:
        env_name: name of the task, such as halfcheetah.
        action_repeat: frames for each action; >= 1.
        episode_length: frames until an episode is truncated; >= 1.
        kwargs: further arguments of the task's class, such as `backend`.

    Raises:
        ValueError: when Brax is not installed. `make` raises it for an unknown task or argument.
    """

    package = "brax"

    @checked
    def __init__(
        self,
        env_name: str = "halfcheetah",
        action_repeat: Count = 1,
        episode_length: Count = 1000,
        kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(env_name, action_repeat, episode_length)
        self.kwargs = kwargs

    def names(self) -> Iterable[str]:
        simulator_device()  # before anything imports JAX
        from brax import envs

        names: dict[str, Any] = envs._envs
        return names

    def load(self) -> tuple[Simulation, int]:
        from brax import envs

        assert self.episode_length is not None
        return envs.get_environment(self.env_name, **(self.kwargs or {})), self.episode_length
