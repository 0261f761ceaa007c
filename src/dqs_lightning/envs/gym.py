"""Gymnasium environments, through TorchRL's wrapper."""

from functools import partial

import gymnasium
from torchrl.envs import (
    ActionScaling,
    CatTensors,
    Compose,
    DoubleToFloat,
    EnvBase,
    FrameSkipTransform,
    GymEnv,
    SerialEnv,
    TransformedEnv,
)

from dqs_lightning.envs.base import Environment
from dqs_lightning.registry import nearest


class Gym(Environment):
    """A Gymnasium environment of continuous, bounded actions; a dict observation is concatenated.

    Args:
        id: the registered id, such as Pendulum-v1.
        action_repeat: frames for each action; >= 1.

    Raises:
        ValueError: when Gymnasium knows no such id.
    """

    def __init__(self, id: str = "Pendulum-v1", action_repeat: int = 1) -> None:
        super().__init__(action_repeat)
        if id not in gymnasium.registry:
            hint = nearest(id, gymnasium.registry)
            raise ValueError(f"id={id}: not registered with Gymnasium{f'; did you mean {hint}?' if hint else ''}")
        self.id = id

    @property
    def name(self) -> str:
        return self.id.replace("/", "-")

    def make(self, num_envs: int, seed: int) -> EnvBase:
        return SerialEnv(num_envs, [partial(self._one, seed + index) for index in range(num_envs)])

    def _one(self, seed: int) -> EnvBase:
        env = GymEnv(self.id, categorical_action_encoding=True)
        keys = [key for key in env.observation_spec.keys(True, True) if key not in ("pixels",)]
        transforms = [FrameSkipTransform(self.action_repeat)] if self.action_repeat > 1 else []
        if keys != ["observation"]:
            transforms.append(CatTensors(in_keys=keys, out_key="observation", del_keys=True))
        transforms += [DoubleToFloat(), ActionScaling()]
        wrapped = TransformedEnv(env, Compose(*transforms))
        wrapped.set_seed(seed)
        return wrapped
