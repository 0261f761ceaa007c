"""Base class of agents with two critics on a loss of TorchRL."""

import warnings
from abc import abstractmethod

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.objectives import LossModule, SoftUpdate

from dqs_lightning.agents.base import Agent
from dqs_lightning.diffusion import Backbone
from dqs_lightning.nn.critics import QNetwork
from dqs_lightning.nn.observation_norm import ObservationNorm


class TwinCritic(Agent):
    """Base class of agents whose `loss` holds a policy, two critics and their targets, as TorchRL has them.

    Subclass it, set `loss`, `learning_rate`, `discount` and `tau`, and write `sample` and `learn`.
    """

    TARGETS: tuple[str, ...] = ("qvalue",)
    """Networks of the loss that have a target."""

    loss: LossModule
    learning_rate: float
    tau: float
    _target_updater: SoftUpdate | None = None

    def make_critics(self, backbone: Backbone) -> list[TensorDictModule]:
        """Two critics as TorchRL's losses take them."""
        sizes = self.observation_dim, self.action_dim
        columns = [_Column(*sizes, backbone, exists=self.action_mask) for _ in range(2)]
        return [TensorDictModule(column, ["observation", "action"], ["state_action_value"]) for column in columns]

    def q_value(self, observation: Tensor, action: Tensor) -> Tensor:
        observation, values = self.observation_norm(observation), []
        for params in self.loss.qvalue_network_params.unbind(0):
            with params.to_module(self.loss.qvalue_network):
                values.append(self.loss.qvalue_network.module(observation, action))
        return torch.stack(values).amin(0).squeeze(-1)

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> None:
        if self._target_updater is None:  # not before the parameters are on their device
            self._target_updater = self._make_target_updater()
        self.learn(self.normalised(batch), self._target_updater)
        self.update_observation_norm(batch["observation"])

    @abstractmethod
    def learn(self, batch: TensorDictBase, targets: SoftUpdate) -> None:
        """One update from a batch of normalised observations."""

    def normalised(self, batch: TensorDictBase) -> TensorDictBase:
        """The batch as the networks see it."""
        if not isinstance(self.observation_norm, ObservationNorm):
            return batch
        seen = batch.clone(False)
        for key in ("observation", ("next", "observation")):
            seen[key] = self.observation_norm(batch[key])
        return seen

    def _make_target_updater(self) -> SoftUpdate:
        # TorchRL's begins by making both sides equal; a run that continues keeps the targets that it has.
        with warnings.catch_warnings():  # that no updater is associated: it is made below
            warnings.simplefilter("ignore", UserWarning)
            targets = [getattr(self.loss, f"target_{network}_network_params") for network in self.TARGETS]
        kept = [params.data.clone() for params in targets]
        updater = SoftUpdate(self.loss, tau=self.tau)
        for params, values in zip(targets, kept, strict=True):
            params.data.update_(values)
        return updater

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One Adam for all that the loss trains."""
        return torch.optim.Adam(self.loss.parameters(), lr=self.learning_rate, fused=True)


def of_observation(observation: Tensor) -> TensorDict:
    """Observations [..., o] as the modules of a loss take them."""
    return TensorDict({"observation": observation}, observation.shape[:-1])


class _Column(QNetwork):
    """Q as a column [..., B, 1], which is how TorchRL has rewards."""

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return super().forward(observation, action).unsqueeze(-1)
