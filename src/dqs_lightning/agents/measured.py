"""What a temperature's controller may measure of an agent."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dqs_lightning.agents.dqs import DQS


class Measured:
    """What a temperature may ask after an update (`temperature.Measurements`), worked out when it is asked.

    Each is a mean over the first states of the batch and over ranks, so that all ranks hold the same T.
    """

    STATES = 64
    SPREAD_STATES = 16  # its running mean is over many updates
    ACTIONS = 16
    PATHS = 4

    def __init__(self, agent: "DQS", observation: Tensor, mean_ess: Tensor | None) -> None:
        self.agent, self.observation, self.mean_ess = agent, observation[: self.STATES], mean_ess

    @torch.no_grad()
    def q_spread(self) -> Tensor:
        observation = self.observation[: self.SPREAD_STATES]
        actions = self.agent.support.uniform(
            self.ACTIONS, observation.new_empty(len(observation), self.agent.action_dim)
        )
        return self._mean(self.agent.q_value(observation, actions).std(0))

    @torch.no_grad()
    def entropy(self) -> Tensor:
        path = self.agent.path(self.observation, self.PATHS)
        return self._mean(self.agent.entropy(path) / self.agent.action_dim)

    @torch.no_grad()
    def ess(self) -> Tensor:
        agent = self.agent
        assert self.mean_ess is not None  # an agent without an actor refuses a temperature that asks
        estimator = agent.energy_estimator
        candidates = estimator.num_samples * (agent.noised_points.points if estimator.pools else 1)
        return self._mean(self.mean_ess / candidates)

    def _mean(self, value: Tensor) -> Tensor:
        return self.agent.mean_over_ranks(value.mean())
