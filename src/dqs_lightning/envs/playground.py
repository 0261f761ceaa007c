"""MuJoCo Playground: the Control Suite, locomotion and manipulation, simulated in batches on a GPU."""

from collections.abc import Iterable
from typing import Any

from dqs_lightning.envs.jax_episodes import Simulation
from dqs_lightning.envs.simulated import Simulated, simulator_device
from dqs_lightning.ranges import Count, checked


class Playground(Simulated):
    """A task of MuJoCo Playground: `data.num_envs` simulations advance in one call on JAX's device.

    A frame is one control step (`ctrl_dt`) of the task. Of observations with several parts, the policy observes
    `state`. A simulation that diverges ends its episode as terminated.

    Args:
        env_name: name of the task, such as WalkerWalk. Those of locomotion and manipulation download their robots.
        action_repeat: frames for each action; >= 1.
        episode_length: frames until an episode is truncated; >= 1. None: that of the task's configuration.
        config_overrides: further settings of the task's configuration, by key. `impl`, the simulator, is jax on a CPU
            and the task's own default on a GPU, unless it is given.

    Raises:
        ValueError: when MuJoCo Playground is not installed. `make` raises it for an unknown task or setting.
    """

    package = "mujoco_playground"

    @checked
    def __init__(
        self,
        env_name: str = "WalkerWalk",
        action_repeat: Count = 1,
        episode_length: Count | None = None,
        config_overrides: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(env_name, action_repeat, episode_length)
        self.config_overrides = config_overrides

    def names(self) -> Iterable[str]:
        simulator_device()  # before anything imports JAX
        from mujoco_playground import registry

        names: tuple[str, ...] = registry.ALL_ENVS
        return names

    def load(self) -> tuple[Simulation, int]:
        from mujoco_playground import registry

        config = registry.get_default_config(self.env_name)
        overrides = dict(self.config_overrides or {})
        if simulator_device().type == "cpu" and "impl" in config:
            overrides.setdefault("impl", "jax")
        simulation = registry.load(self.env_name, config=config, config_overrides=overrides)
        return simulation, config.episode_length
