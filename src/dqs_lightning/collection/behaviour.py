"""The behaviour policy of a collector, and TorchRL's collector in this process."""

from collections.abc import Callable

from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.collectors import Collector
from torchrl.envs import EnvBase

from dqs_lightning.agents import Agent
from dqs_lightning.finite import MAX_MAGNITUDE, check_step, magnitude


class Behaviour(nn.Module):
    """Computes a collector's actions [..., d] for observations [..., o].

    For a non-finite action or observation it raises a NonFiniteError that names the environment, so that the cause is
    reported and not a failure of the environment or the agent that follows from it.

    Args:
        agent: chooses the actions.
        frames: returns the environment frames before the present block, for the message.
    """

    def __init__(self, agent: Agent, frames: Callable[[], int]) -> None:
        super().__init__()
        self.agent, self.frames = agent, frames

    def forward(self, observation: Tensor) -> Tensor:
        try:
            action: Tensor = self.agent(observation)
        except Exception:  # raised again unless the observation is its cause
            self._check("observation", observation)
            raise
        if not magnitude(action) <= MAX_MAGNITUDE:
            self._check("observation", observation)
            self._check("action", action)
        return action

    def _check(self, source: str, values: Tensor) -> None:
        check_step(source, values, f"after frame {self.frames():,}: ")


def collector_of(env: EnvBase, agent: Agent, steps: int, random_steps: int, frames: Callable[[], int]) -> Collector:
    """Collects blocks of `steps` steps of all environments together, the first `random_steps` of uniform actions.

    It closes the environments, also when it cannot be constructed. `frames` as in `Behaviour`.
    """
    try:
        return Collector(
            env,
            TensorDictModule(Behaviour(agent, frames), in_keys=["observation"], out_keys=["action"]),
            frames_per_batch=steps,
            total_frames=-1,
            init_random_frames=random_steps or None,
            policy_device=agent.device,
            env_device=env.device,
            storing_device=env.device,
            track_traj_ids=False,
            auto_register_policy_transforms=False,
        )
    except BaseException:
        env.close(raise_if_closed=False)
        raise
