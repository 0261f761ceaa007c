"""Diagnostics: is the actor's target good, and does the policy follow exp(Q/T)? The score loss does not say."""

import copy
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dqs_lightning.agents import DQS
from dqs_lightning.diffusion import OnPath
from dqs_lightning.ranges import at_least

SAMPLES = 64
"""Actions a state, of which the best and the mean are compared."""
LARGE = 16
"""The reference target has so many times the agent's candidates."""
WALL = 0.98
"""An action beyond it in a dimension counts as being at a wall."""


class Diagnostics(Callback):
    """Every so often, on states of the first batch, write under diagnostics/:

    `ess_low`, `ess_middle`, `ess_high`: effective sample size of the target, by thirds of the noise schedule;
    `target_error`: squared error of the target against one of 16 times the candidates, in units of the score loss;
    `entropy`: of the policy, in nats; `at_walls`: share of action components beyond 0.98; `sharpness`: (best Q of
    64 samples - their mean) / T, which is about the dimension or less for an actor that follows exp(Q/T).

    The agent's random numbers are left as they were. Does nothing for agents that are no DQS.

    Args:
        every_updates: updates between two measurements; >= 1. At 1000 they cost about one percent.
        states: how many states of the first batch are kept; >= 1.
    """

    def __init__(self, every_updates: int = 1000, states: int = 64) -> None:
        for name, value in (("every_updates", every_updates), ("states", states)):
            at_least(name, value, 1)
        self.every_updates, self.states = every_updates, states
        self._observation: Tensor | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not isinstance(pl_module, DQS) or not pl_module.amortised:
            return
        if self._observation is None:
            self._observation = batch["observation"][: self.states].clone()
        if trainer.global_step % self.every_updates == 0:
            observation = self._observation.to(pl_module.device)
            devices = [pl_module.device] if pl_module.device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices), torch.no_grad():
                measured = diagnose(pl_module, observation)
            pl_module.write({f"diagnostics/{name}": value.item() for name, value in measured.items()})

    def state_dict(self) -> dict[str, Any]:
        return {"observation": self._observation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._observation = state_dict["observation"]


def diagnose(agent: DQS, observation: Tensor) -> dict[str, Tensor]:
    """What `Diagnostics` writes, by name, scalars; observation [B, o]."""
    assert agent.denoiser is not None
    temperature = agent.temperature()
    path = agent.path(observation, SAMPLES)
    values = agent.q_value(observation, path.action)

    points = OnPath(states=None)
    walked = agent.path(observation, points.trajectories)
    x, sigma = points(walked, lambda: path.action[0], agent.noise_schedule)
    log_prob = agent.log_prob(observation, temperature)
    moments = agent.denoiser(x, sigma, agent.condition(observation))
    larger = copy.copy(agent.energy_estimator)
    larger.num_samples *= LARGE
    small, large = (
        estimator(log_prob, x, sigma, agent.support, guide=moments.mean)
        for estimator in (agent.energy_estimator, larger)
    )
    error = agent.denoiser.preconditioning.loss_weight(sigma) * (small.denoised - large.denoised).square()
    third = (agent.noise_schedule.t_of(sigma).squeeze(-1) * 3).long().clamp(0, 2)
    ess = {
        f"ess_{name}": (small.ess * (third == i)).sum() / (third == i).sum().clamp_min(1)
        for i, name in enumerate(("low", "middle", "high"))
    }
    return {
        **ess,
        "target_error": error.mean(),
        "entropy": agent.entropy(path).mean(),
        "at_walls": (path.action.abs() > WALL).float().mean(),
        "sharpness": ((values.amax(0) - values.mean(0)) / temperature).mean(),
    }
