"""What runs in the process of a Ray actor: TorchRL's collector, with the weights that come with each block."""

import sys
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.collectors import Collector

from dqs_lightning.agents import Agent
from dqs_lightning.collection.behaviour import Behaviour


class ActorCollector(Collector):  # type: ignore[misc]  # torchrl has no types
    """TorchRL's collector in the process of an actor; each block is collected with the weights that it is given."""

    def collect(self, weights: dict[str, Tensor], uniform: bool, frames: int) -> TensorDictBase:
        """Returns the next block [E, T].

        Args:
            weights: of `Agent.acting_state`.
            uniform: whether actions are uniformly random.
            frames: environment frames so far, for messages.
        """
        behaviour: Behaviour = self.policy.module
        behaviour.agent.load_state_dict(weights, strict=False)
        behaviour.frames = lambda: frames
        self.init_random_frames = sys.maxsize if uniform else 0
        block: TensorDictBase = self.next()
        return block


def behaviour_of(agent: type[Agent], arguments: dict[str, Any], seed: int) -> TensorDictModule:
    """Returns the behaviour policy of a new agent. Called in an actor."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    behaviour = Behaviour(agent(**arguments), lambda: 0)
    return TensorDictModule(behaviour, in_keys=["observation"], out_keys=["action"])
