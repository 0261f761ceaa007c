"""Policies as modules whose random numbers are an input, so that one graph, such as ONNX, holds a whole policy."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dqs_lightning.diffusion.process import Diffusion
from dqs_lightning.diffusion.samplers import Noise
from dqs_lightning.nn.action_mask import ActionMask


class PolicyGraph(nn.Module, ABC):
    """A policy that draws one action for each observation, with its standard normals as an input.

    Subclass it and write `forward`, whose operations `torch.export` must be able to trace. Parameters are copied.

    Args:
        observation_norm: normalises observations.
        network: the networks of the policy, and nothing else: a file contains all that is in here.
        draws: standard normals [batch, d] of one action; 0 for a deterministic policy, which takes no noise.
        exists: which dimensions of the action exist at an observation, for `existing`; None: all.

    Attributes:
        action_low: lower bound of its actions.
        action_high: upper bound of its actions.
        takes_temperature: whether temperatures [batch, 1] are an input, after the observations.
    """

    action_low, action_high = -1.0, 1.0
    takes_temperature = False

    def __init__(
        self, observation_norm: nn.Module, network: nn.Module, draws: int, exists: ActionMask | None = None
    ) -> None:
        super().__init__()
        self.observation_norm = copy.deepcopy(observation_norm).requires_grad_(False)
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.draws, self.exists = draws, exists

    def existing(self, observation: Tensor, action: Tensor) -> Tensor:
        """Sets the components of an action that the task of its observation does not have to 0."""
        return action if self.exists is None else torch.where(self.exists(observation), action, 0.0)

    @abstractmethod
    def forward(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        """Returns actions [batch, d] for raw observations [batch, o] and noise [draws, batch, d], in drawing order."""


class DiffusionGraph(PolicyGraph):
    """The denoising loop of a `Diffusion`, with a constant temperature.

    Args:
        observation_norm: normalises observations.
        diffusion: draws the actions.
        condition: returns the condition [batch, c] for normalised observations [batch, o] and a temperature, a scalar
            or [batch].
        observation_dim: o.
        temperature: T, a scalar.
        deterministic: whether it takes no noise.
    """

    network: Diffusion

    def __init__(
        self,
        observation_norm: nn.Module,
        diffusion: Diffusion,
        condition: Callable[[Tensor, Tensor], Tensor],
        observation_dim: int,
        temperature: Tensor,
        deterministic: bool,
    ) -> None:
        super().__init__(observation_norm, diffusion, 0)
        self._condition, self._temperature, self._deterministic = condition, temperature, deterministic
        bounds = torch.tensor([-torch.inf, torch.inf])  # every support maps these to its own bounds
        self.action_low, self.action_high = diffusion.support.to_action(bounds).tolist()

        def count(like: Tensor) -> Tensor:
            self.draws += 1
            return torch.zeros_like(like)

        self._sample(next(diffusion.parameters()).new_zeros(1, observation_dim), temperature, count)

    def forward(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        return self._act(observation, self._temperature, noise)

    def _act(self, observation: Tensor, temperature: Tensor, noise: Tensor | None) -> Tensor:
        draws = iter(() if noise is None else noise.unbind(0))
        return self._sample(observation, temperature, lambda like: next(draws))

    def _sample(self, observation: Tensor, temperature: Tensor, noise: Noise) -> Tensor:
        condition = self._condition(self.observation_norm(observation), temperature)
        return self.network.sample(condition, noise=None if self._deterministic else noise)


class TemperedGraph(DiffusionGraph):
    """The denoising loop of a `Diffusion` at any temperature that it has learned, which is a further input."""

    takes_temperature = True

    def forward(  # type: ignore[override]  # an input more
        self, observation: Tensor, temperature: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """Returns actions as `PolicyGraph.forward`, at temperatures [batch, 1] > 0."""
        return self._act(observation, temperature.squeeze(-1), noise)


class TanhNormalGraph(PolicyGraph):
    """The tanh of a normal distribution.

    Args:
        observation_norm: normalises observations.
        network: returns mean and standard deviation [batch, d] for normalised observations.
        deterministic: whether it returns the tanh of the mean and takes no noise.
        exists: see `PolicyGraph`.
    """

    def __init__(
        self, observation_norm: nn.Module, network: nn.Module, deterministic: bool, exists: ActionMask | None = None
    ) -> None:
        super().__init__(observation_norm, network, 0 if deterministic else 1, exists)

    def forward(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        mean, deviation = self.network(self.observation_norm(observation))
        return self.existing(observation, torch.tanh(mean if noise is None else mean + deviation * noise[0]))


class ExplorationGraph(PolicyGraph):
    """A deterministic policy with Gaussian exploration noise, clipped to [-1, 1].

    Args:
        observation_norm: normalises observations.
        network: returns actions [batch, d] in [-1, 1] for normalised observations.
        deviation: standard deviation of the noise; 0: it takes no noise.
        exists: see `PolicyGraph`.
    """

    def __init__(
        self, observation_norm: nn.Module, network: nn.Module, deviation: float, exists: ActionMask | None = None
    ) -> None:
        super().__init__(observation_norm, network, 1 if deviation else 0, exists)
        self._deviation = deviation

    def forward(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        action: Tensor = self.network(self.observation_norm(observation))
        noisy = action if noise is None else (action + self._deviation * noise[0]).clamp(-1, 1)
        return self.existing(observation, noisy)
