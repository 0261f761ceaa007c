"""An example of an environment factory: Gymnasium's, with scaled rewards."""

from torchrl.envs import EnvBase, RewardScaling, TransformedEnv

from dqs_lightning.envs import Gym


class ScaledGym(Gym):
    """`Gym` with rewards multiplied by `scale`, which sets the scale of Q and so of a suitable temperature."""

    def __init__(self, id: str = "Pendulum-v1", action_repeat: int = 1, scale: float = 0.1) -> None:
        super().__init__(id, action_repeat)
        self.scale = scale

    def make(self, num_envs: int, seed: int) -> EnvBase:
        return TransformedEnv(super().make(num_envs, seed), RewardScaling(0.0, self.scale))
