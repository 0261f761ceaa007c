"""Diagnostics of the actor: the quality of its target, and how closely the policy follows exp(Q/T)."""

import copy
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dqs_lightning.agents import DQS
from dqs_lightning.diffusion import OnTrajectory, Posterior
from dqs_lightning.ranges import Count, checked

SAMPLES = 64
"""Actions for each state, whose best and mean are compared."""
REFERENCE_FACTOR = 16
"""Candidates of the reference target, in multiples of the agent's."""
NEAR_BOUND = 0.98
"""Magnitude above which an action component counts as being at a bound."""


class Diagnostics(Callback):
    """Logs, every `every_updates` updates and on states of the first batch, under diagnostics/:

    `ess_low`, `ess_middle`, `ess_high`: effective sample size of the target, by thirds of the noise schedule;
    `target_error`: squared error of the target against one of 16 times the candidates, in units of the score loss;
    `entropy`: of the policy, in nats; `at_bounds`: share of action components beyond 0.98; `sharpness`: (best Q of
    64 samples - their mean) / T, which is about the dimension or less for an actor that follows exp(Q/T).

    The random state is restored afterwards. Has no effect for agents other than DQS.

    Args:
        every_updates: updates between two measurements; >= 1. At 1000 they cost about one percent.
        states: how many states of the first batch are kept; >= 1.
    """

    @checked
    def __init__(self, every_updates: Count = 1000, states: Count = 64) -> None:
        self.every_updates, self.states = every_updates, states
        self._observation: Tensor | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
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
            pl_module.log_metrics({f"diagnostics/{name}": value.item() for name, value in measured.items()})

    def state_dict(self) -> dict[str, Any]:
        return {"observation": self._observation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._observation = state_dict["observation"]


def diagnose(agent: DQS, observation: Tensor) -> dict[str, Tensor]:
    """Computes what `Diagnostics` writes, by name, scalars; observation [B, o]."""
    diffusion, temperature = agent.diffusion, agent.temperature()
    drawn = agent.trajectory(observation, SAMPLES)
    values = agent.q_value(observation, drawn.action)

    points = OnTrajectory(states=None)
    trajectory = agent.trajectory(observation, points.trajectories)
    x, sigma = points(trajectory, lambda: drawn.action[0], diffusion.noise_schedule)
    observation = agent.observation_norm(observation)
    condition = agent.condition(observation, temperature)
    support = diffusion.support_at(condition)
    x = support.present(x)
    moments = diffusion.denoiser(x, sigma, condition)
    posterior = Posterior(agent.log_prob(observation, temperature), x, sigma, support, guide=moments.mean)
    estimator = diffusion.energy_estimator
    reference = copy.copy(estimator)
    reference.num_samples *= REFERENCE_FACTOR
    small, large = estimator.estimate(posterior), reference.estimate(posterior)
    error = diffusion.denoiser.preconditioning.loss_weight(sigma) * (small.denoised - large.denoised).square()
    third = (diffusion.noise_schedule.t_of_sigma(sigma).squeeze(-1) * 3).long().clamp(0, 2)
    ess = {
        f"ess_{name}": (small.ess * (third == i)).sum() / (third == i).sum().clamp_min(1)
        for i, name in enumerate(("low", "middle", "high"))
    }
    return {
        **ess,
        "target_error": support.mean(error),
        "entropy": diffusion.entropy(drawn, support).mean(),
        "at_bounds": support.mean((drawn.action.abs() > NEAR_BOUND).float()),
        "sharpness": ((values.amax(0) - values.mean(0)) / temperature).mean(),
    }
