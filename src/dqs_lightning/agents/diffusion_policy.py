"""Acting by a diffusion model of exp(Q(s, a) / T)."""

import copy
import math
from abc import abstractmethod

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tensordict import TensorDictBase
from torch import Tensor

from dqs_lightning.agents.base import Agent
from dqs_lightning.agents.graph import DiffusionGraph, TemperedGraph
from dqs_lightning.diffusion.process import Diffusion
from dqs_lightning.diffusion.samplers import Trajectory
from dqs_lightning.diffusion.support import LogProb
from dqs_lightning.nn.backbones import InnerPrecision, inner_dtype
from dqs_lightning.nn.critics import CriticPair
from dqs_lightning.temperature import Temperature
from dqs_lightning.temperature.range import TemperatureRange
from dqs_lightning.temperature.task_factors import TaskFactors


class DiffusionPolicy(Agent):
    """Base class of agents that draw actions from exp(Q(s, a) / T) by integrating a reverse diffusion.

    Subclass it, set the following attributes, and write `training_step` and `configure_optimizers`.
    """

    critic: CriticPair
    diffusion: Diffusion
    temperature: Temperature
    temperature_range: TemperatureRange
    """Temperatures that can be sampled at."""
    temperature_factors: TaskFactors | None
    """Factors of T for several tasks; None: there is one task."""
    exploration_noise: float
    inner_precision: InnerPrecision
    amortised: bool
    """Whether the diffusion has a network; without one, it can be sampled at every temperature."""

    @abstractmethod
    def training_step(self, batch: TensorDictBase, batch_idx: int) -> None:
        """Makes one update."""

    def condition(self, observation: Tensor, temperature: Tensor) -> Tensor:
        """Returns the denoiser's condition (s, log T) for normalised observations [..., o]: [..., o + 1].

        T is a scalar or [...], and that of a task is T times its factor.
        """
        return _condition(observation, self.of_task(observation, temperature))

    def of_task(self, observation: Tensor, temperature: Tensor) -> Tensor:
        """Returns T of the tasks of normalised observations [..., o], for a T that is a scalar or [...]."""
        return _of_task(observation, temperature, self.temperature_factors)

    def log_prob(self, observation: Tensor, temperature: Tensor) -> LogProb:
        """The paper's log pi(a|s) = Q(s, a) / T + const, for normalised observations [B, o]; T as in `condition`."""
        return self._log_prob(observation, self.of_task(observation, temperature))

    def _log_prob(self, observation: Tensor, temperature: Tensor) -> LogProb:
        q_value = self.critic.bind(observation, inner_dtype(self.inner_precision, observation))
        return lambda action: q_value(action) / temperature

    def energy(self, condition: Tensor) -> LogProb:
        """`log_prob` for conditions [B, o + 1]."""
        return self._log_prob(condition[..., :-1], condition[..., -1].exp())

    @torch.no_grad()
    def forward(self, observation: Tensor) -> Tensor:
        """The behaviour policy: an action of the policy for each observation [..., o], plus `exploration_noise`."""
        action = self.act(observation)
        if not self.exploration_noise:
            return action
        noisy = action + self.exploration_noise * torch.randn_like(action)
        return self.existing(observation, noisy.clamp(-1, 1))

    def acting_state(self) -> dict[str, Tensor]:
        without = () if self.best_of > 1 or not self.amortised else ("critic.",)
        return {name: value for name, value in super().acting_state().items() if not name.startswith(without)}

    def sample(
        self, observation: Tensor, num: int = 1, deterministic: bool = False, temperature: float | None = None
    ) -> Tensor:
        """See `Agent.sample`. `temperature`: T to sample at; None: the present one.

        Raises:
            ValueError: for a temperature that the denoiser has not learned (see `temperature_range`).
        """
        return self.trajectory(observation, num, deterministic, temperature).action

    def trajectory(
        self, observation: Tensor, num: int = 1, deterministic: bool = False, temperature: float | None = None
    ) -> Trajectory:
        """`sample`, with the points through which the sampler reached the actions."""
        condition = self.condition(self.observation_norm(observation), self.chosen_temperature(temperature))
        return self.diffusion.trajectory(condition, num, None if deterministic else torch.randn_like)

    def chosen_temperature(self, value: float | None) -> Tensor:
        """Returns a T to sample at as a scalar tensor, None: the present one; see `sample` for the error."""
        present: Tensor = self.temperature()
        if value is None:
            return present
        if self.amortised:
            self.temperature_range.check(value, float(present))
        elif not 0 < value < math.inf:
            raise ValueError(f"temperature={value:g}: must be > 0 and finite")
        return torch.full_like(present, value)

    def policy_graph(self, deterministic: bool = False) -> DiffusionGraph:
        if not self.amortised:
            raise MisconfigurationException("DQS with amortised=False cannot be exported: it has no actor")
        kind = DiffusionGraph if self.temperature_range.low == self.temperature_range.high else TemperedGraph
        factors = copy.deepcopy(self.temperature_factors)

        def condition(observation: Tensor, temperature: Tensor) -> Tensor:
            return _condition(observation, _of_task(observation, temperature, factors))

        size = self.observation_dim, self.temperature()
        return kind(self.observation_norm, self.diffusion, condition, *size, deterministic)

    def q_value(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.critic.value(self.observation_norm(observation), action)


def _of_task(observation: Tensor, temperature: Tensor, factors: TaskFactors | None) -> Tensor:
    """See `DiffusionPolicy.of_task`."""
    return temperature * factors.of(observation) if factors else temperature


def _condition(observation: Tensor, temperature: Tensor) -> Tensor:
    """See `DiffusionPolicy.condition`; T is that of each observation's task."""
    log_temperature = torch.log(temperature).unsqueeze(-1)
    return torch.cat([observation, log_temperature.expand(*observation.shape[:-1], 1)], -1)
