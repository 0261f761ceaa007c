"""Where a run's transitions come from: TorchRL collectors, in the run's own process or one block ahead of it."""

import copy
from collections.abc import Callable, Iterator

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.collectors import AsyncCollector
from torchrl.envs import EnvBase

from dqs_lightning.agents import Agent
from dqs_lightning.finite import MAX_MAGNITUDE, check_step, magnitude


class Behaviour(nn.Module):
    """Computes a collector's actions [..., d] for observations [..., o], and refuses what is not finite.

    An environment may fail at such an action, and an agent at such an observation; the error then names the cause.
    On a GPU it waits for the actions, as the environments would do next.

    Args:
        agent: acts.
        frames: gives the environment frames before the present block, for the message; None: they are not known.

    Raises:
        NonFiniteError: naming the environment, for an action that is not finite, or the observation that led to it.
    """

    def __init__(self, agent: Agent, frames: Callable[[], int] | None = None) -> None:
        super().__init__()
        self.agent, self.frames = agent, frames

    def forward(self, observation: Tensor) -> Tensor:
        try:
            action: Tensor = self.agent(observation)
        except Exception:
            self._check("observation", observation)
            raise
        if not magnitude(action) <= MAX_MAGNITUDE:
            self._check("observation", observation)
            self._check("action", action)
        return action

    def _check(self, source: str, values: Tensor) -> None:
        check_step(source, values, f"after frame {self.frames():,}: " if self.frames else "")


def behaviour(agent: Agent, frames: Callable[[], int] | None = None) -> TensorDictModule:
    """The agent as a collector's policy; `frames` as in `Behaviour`."""
    return TensorDictModule(Behaviour(agent, frames), in_keys=["observation"], out_keys=["action"])


class Seeded:
    """Makes environments in another process, whose random state it sets first."""

    def __init__(self, make: Callable[[], EnvBase], seed: int) -> None:
        self.make, self.seed = make, seed

    def __call__(self) -> EnvBase:
        torch.manual_seed(self.seed)
        return self.make()


class Ahead:
    """Collects the next block in a process of its own, on the CPU, while the updates of this one are made.

    Each block is asked for when the one before arrives, with the weights of that moment: its policy lacks the updates
    of one block, never more, however fast either side is. The process draws from a random state of its own and waits
    for its weights, so that a run repeats; its environments cannot be looked into from here.

    Args:
        make: makes the environments; is pickled.
        agent: of which a copy acts.
        steps: of all environments together, in a block.
        random_steps: at first, of uniform actions.
        seed: of the process.
        updates: gradient updates that have been made when the next block is asked for.
    """

    age: int | None = None
    """Updates that the policy of the latest block lacked when the block arrived."""

    def __init__(
        self,
        make: Callable[[], EnvBase],
        agent: Agent,
        steps: int,
        random_steps: int,
        seed: int,
        updates: Callable[[], int],
    ) -> None:
        self.agent, self.updates = agent, updates
        self._made = [updates()]  # at each version of the weights, as it was sent
        self.collector = AsyncCollector(
            Seeded(make, seed),
            behaviour(copy.deepcopy(agent).cpu()),
            frames_per_batch=steps,
            total_frames=-1,
            init_random_frames=random_steps or None,
            policy_device="cpu",
            env_device="cpu",
            storing_device="cpu",
            track_policy_version=True,
        )

    def __iter__(self) -> Iterator[TensorDictBase]:
        self._send()
        for block in self.collector:
            version = int(block["next", "policy_version"].min())
            self.age = self.updates() - self._made[version]
            yield block
            self._send()

    def _send(self) -> None:
        """Give the process the present weights, for the block after the one that it is at."""
        self.collector.update_policy_weights_(TensorDict.from_module(behaviour(self.agent)).data.cpu())
        self._made.append(self.updates())

    def shutdown(self) -> None:
        self.collector.shutdown()
