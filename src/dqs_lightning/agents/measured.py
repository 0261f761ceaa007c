"""Measurements of an agent for the controller of its temperature."""

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dqs_lightning.temperature.task_factors import TaskFactors

if TYPE_CHECKING:
    from dqs_lightning.agents.dqs import DQS


class Measured:
    """Implements `temperature.Measurements` for DQS; each is computed when it is called.

    Each is a mean over the first states of the batch and over ranks, so that all ranks have the same T.
    """

    EVERY = 4
    """Updates of the actor between two measurements: T changes over thousands of updates."""
    STATES = 64
    ACTIONS = 16
    TRAJECTORIES = 4

    def __init__(self, agent: "DQS", observation: Tensor, mean_ess: Tensor | None) -> None:
        self.agent, self.observation, self.mean_ess = agent, observation[: self.STATES], mean_ess

    def q_std(self) -> Tensor:
        return self._mean(self._q_std)

    def q_std_of_tasks(self, factors: TaskFactors) -> Tensor:
        """Standard deviation of Q over uniform actions, mean over the states of each task, [K]."""
        return self.agent.mean_over_ranks(factors.mean_of_each(self.observation, self._q_std))

    @cached_property
    def _q_std(self) -> Tensor:
        like = self.observation.new_empty(len(self.observation), self.agent.action_dim)
        actions = self.agent.diffusion.support.uniform(self.ACTIONS, like)
        with torch.no_grad():
            return self.agent.q_value(self.observation, actions).std(0)

    @torch.no_grad()
    def entropy(self) -> Tensor:
        agent = self.agent
        trajectory = agent.trajectory(self.observation, self.TRAJECTORIES)
        condition = agent.condition(agent.observation_norm(self.observation), agent.temperature())
        support = agent.diffusion.support_at(condition)
        return self._mean(agent.diffusion.entropy(trajectory, support) / support.dims(agent.action_dim))

    @torch.no_grad()
    def ess(self) -> Tensor:
        assert self.mean_ess is not None  # DQS refuses a temperature that needs it where there is no actor
        diffusion = self.agent.diffusion
        estimator = diffusion.energy_estimator
        candidates = estimator.num_samples * (diffusion.training_points.points if estimator.pools else 1)
        return self._mean(self.mean_ess / candidates)

    def _mean(self, value: Tensor) -> Tensor:
        return self.agent.mean_over_ranks(value.mean())
