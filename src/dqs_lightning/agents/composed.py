"""A policy that several trained agents have in common: a sampler of the sum of their energies."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from dqs_lightning.agents.base import Agent
from dqs_lightning.agents.diffusion_policy import DiffusionPolicy
from dqs_lightning.diffusion import BoltzmannSampler
from dqs_lightning.diffusion.estimators import EnergyEstimator
from dqs_lightning.diffusion.importance import Resampling
from dqs_lightning.diffusion.process import Diffusion, EnergyDiffusion
from dqs_lightning.diffusion.samplers import Sampler
from dqs_lightning.diffusion.schedules import NoiseSchedule
from dqs_lightning.diffusion.support import Box, LogProb
from dqs_lightning.nn.observation_norm import ObservationNorm
from dqs_lightning.ranges import Count, Positive, checked


class Composed(nn.Module):
    """Samples exp((w_1 Q_1(s, a) + ... + w_n Q_n(s, a)) / T), with the Q of trained agents and without training.

    A weighted sum of rewards has the Q function that the sum of the Q_i approximates; docs/several.md has the bound of
    what is lost. Actions are drawn by a reverse diffusion whose denoiser is estimated from the energies, until `distil`
    has trained a network.

    Args:
        agents: one or more, with a Q, and with the same observations and actions.
        weights: w_i of each agent, any finite numbers; None: 1 each.
        temperature: T > 0; None: the sum of w_i T_i, each in magnitude and T_i that of the agent, which must be DQS.
        energy_estimator: of the denoiser. Default: Resampling of 256 uniform actions, for one to three dimensions.
        noise_schedule: default: Geometric.
        sampler: default: MomentMatched.

    Raises:
        ValueError: for agents without a Q, of different sizes, or without a temperature.
    """

    amortised = False
    """Whether a network draws the actions."""

    @checked
    def __init__(
        self,
        agents: Sequence[Agent],
        weights: Sequence[float] | None = None,
        temperature: Positive | None = None,
        energy_estimator: EnergyEstimator | None = None,
        noise_schedule: NoiseSchedule | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        super().__init__()
        if not agents or len(weights or agents) != len(agents):
            raise ValueError(f"weights={weights}: must be one number for each of {len(agents)} agents")
        sizes = {(agent.observation_dim, agent.action_dim) for agent in agents}
        if len(sizes) > 1:
            raise ValueError(f"agents have (observation, action) dimensions {sorted(sizes)}: must be the same")
        if without := next((type(agent).__name__ for agent in agents if not agent.has_q), None):
            raise ValueError(f"{without} has no Q(s, a): its agents cannot be composed")
        self.agents = nn.ModuleList(agents).requires_grad_(False).eval()
        self.weights = tuple(map(float, weights or [1.0] * len(agents)))
        self.temperature = temperature or self._common_temperature(agents)
        self.observation_dim, self.action_dim = sizes.pop()
        self.observation_norm: nn.Module = nn.Identity()
        components = noise_schedule, energy_estimator or Resampling(256), None, sampler
        self.diffusion: Diffusion = EnergyDiffusion(self._energy, self.action_dim, self.observation_dim, *components)

    def _common_temperature(self, agents: Sequence[Agent]) -> float:
        found = 0.0
        for agent, weight in zip(agents, self.weights, strict=True):
            if not isinstance(agent, DiffusionPolicy):
                raise ValueError(f"temperature=None: must be given with {type(agent).__name__}, which has none")
            found += abs(weight) * float(agent.temperature())
        return found

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def q_value(self, observation: Tensor, action: Tensor) -> Tensor:
        """The weighted sum of Q at observations [B, o] and actions [..., B, d]: [..., B]."""
        values = [weight * agent.q_value(observation, action) for weight, agent in self._weighted()]
        return torch.stack(values).sum(0)

    def _weighted(self) -> list[tuple[float, Agent]]:
        return [(w, agent) for w, agent in zip(self.weights, self.agents, strict=True) if isinstance(agent, Agent)]

    @torch.no_grad()
    def disagreement(self, observation: Tensor, num: int = 1024) -> Tensor:
        """Returns delta(s) = sum_i w_i max_a Q_i(s, a) - max_a sum_i w_i Q_i(s, a) >= 0 at observations [B, o]: [B].

        It is 0 where one action is the best for all agents. Its discounted sum along the policy's way bounds what the
        policy loses against the optimum of the sum, for weights >= 0 (docs/several.md). The maxima are over `num`
        evenly spread actions.
        """
        actions = Box().cover(num, observation.new_empty(len(observation), self.action_dim))
        values = torch.stack([weight * agent.q_value(observation, actions) for weight, agent in self._weighted()])
        return values.amax(1).sum(0) - values.sum(0).amax(0)

    def log_prob(self, observation: Tensor) -> LogProb:
        """Unnormalised log density of actions at observations [B, o]."""
        return lambda action: self.q_value(observation, action) / self.temperature

    def _energy(self, condition: Tensor) -> LogProb:
        norm = self.observation_norm
        return self.log_prob(norm.inverse(condition) if isinstance(norm, ObservationNorm) else condition)

    def sample(self, observation: Tensor, num: int = 1, deterministic: bool = False) -> Tensor:
        """Draw num actions in [-1, 1] a state: [B, o] -> [num, B, d]."""
        condition = self.observation_norm(observation).repeat(num, 1)  # rows of their own: each has its candidates
        actions = self.diffusion.sample(condition, noise=None if deterministic else torch.randn_like)
        return actions.view(num, *observation.shape[:-1], self.action_dim)

    @torch.no_grad()
    def act(self, observation: Tensor, deterministic: bool = False, best_of: int | None = None) -> Tensor:
        """Actions [B, d] for observations [B, o]; arguments as of `Agent.act`."""
        num = 1 if deterministic else best_of or 1
        actions = self.sample(observation, num, deterministic)
        if num == 1:
            return actions[0]
        best = self.q_value(observation, actions).argmax(0)
        return actions.gather(0, best[None, :, None].expand(1, *actions.shape[1:]))[0]

    def distil(self, observation: Tensor, updates: Count = 3_000, batch_size: Count = 256, lr: float = 3e-3) -> Self:
        """Trains a network that draws the actions from now on, some hundred times faster; returns self.

        Args:
            observation: states [N, o] at which it learns, such as those that this policy visits.
            updates: gradient updates; >= 1.
            batch_size: noised actions in an update; >= 1.
            lr: Adam's step size, which falls in the second half.
        """
        norm = ObservationNorm(self.observation_dim).to(observation)
        norm.update(norm.moments(observation))
        self.observation_norm = norm
        schedule, sampler = self.diffusion.noise_schedule, self.diffusion.sampler
        network = BoltzmannSampler(
            self.action_dim, condition_dim=self.observation_dim, noise_schedule=schedule, sampler=sampler
        ).to(observation.device)

        def log_prob(action: Tensor, condition: Tensor) -> Tensor:
            return self._energy(condition)(action)

        network.fit(log_prob, updates, batch_size, norm(observation), lr, progress=False)
        self.diffusion, self.amortised = network.diffusion, True
        return self
