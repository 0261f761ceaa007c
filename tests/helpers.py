"""Small runs and fixtures that several tests use."""

import contextlib
import copy
import resource
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from dqs_callbacks import Evaluate
from dqs_lightning.agents import DQS
from dqs_lightning.checkpoint.archive import AtomicCheckpointIO
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.diffusion import (
    MLP,
    Ancestral,
    Backbone,
    Denoise,
    EnergyEstimator,
    Estimate,
    Importance,
    LogProb,
    NoiseSchedule,
    Posterior,
    Sampler,
    Support,
    Unbounded,
)
from dqs_lightning.diffusion.samplers import Noise
from dqs_lightning.envs import DMControl, Environment, Gym, Maze
from dqs_lightning.envs.dm_control import INSTALLED, NOT_INSTALLED
from dqs_lightning.run.checkpoint import RunCheckpoint


def small_data(**changes: Any) -> OnlineData:
    arguments = {"total_frames": 800, "init_random_frames": 400, "batch_size": 16, "num_envs": 2, **changes}
    environment = arguments.pop("environment", None) or short_task()
    return OnlineData(environment, **arguments)


def short_task() -> Environment:
    """Returns cartpole, or a task with one action and as many steps where dm_control is not installed."""
    if INSTALLED:
        return DMControl("cartpole", "swingup", action_repeat=2)
    return Gym("Pendulum-v1", action_repeat=2, kwargs={"max_episode_steps": 1_000})


def cartpole(action_repeat: int = 2) -> Any:
    """Returns cartpole as a parameter of a test, which is skipped where dm_control is not installed."""
    if not INSTALLED:
        return pytest.param(None, id="DMControl", marks=pytest.mark.skip(reason=f"DMControl {NOT_INSTALLED}"))
    return DMControl("cartpole", "swingup", action_repeat)


def small(hidden: tuple[int, ...] = (16, 16)) -> dict[str, Backbone]:
    """Returns the arguments that give an agent networks of the given widths."""
    return {"critic_backbone": MLP(hidden), "actor_backbone": MLP(hidden)}


def small_agent(data: OnlineData, **changes: Any) -> DQS:
    arguments = {"energy_estimator": Importance(4), "sampler": Ancestral(3), **small((32, 32)), **changes}
    return DQS(data.observation_dim, data.action_dim, **arguments)


def trainer(folder: Path, callbacks: list[L.Callback] | None = None, **changes: Any) -> L.Trainer:
    arguments: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks or []),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": int(any(isinstance(callback, Evaluate) for callback in callbacks or [])),
        "default_root_dir": folder,
        "plugins": [AtomicCheckpointIO()],
        **changes,
    }
    return L.Trainer(callbacks=callbacks, **arguments)


def one_step_batch(reward: Tensor, action: Tensor) -> TensorDict:
    """Makes transitions that all terminate, so that Q is the reward."""
    observation = torch.zeros(len(action), 2)
    following = TensorDict(
        {
            "observation": observation,
            "reward": reward.unsqueeze(-1),
            "terminated": torch.ones(len(action), 1, dtype=torch.bool),
            "done": torch.ones(len(action), 1, dtype=torch.bool),
        },
        [len(action)],
    )
    return TensorDict({"observation": observation, "action": action, "next": following}, [len(action)])


def maze_data(**changes: Any) -> OnlineData:
    """Makes data of 160 frames of the maze in blocks of 16, the first 64 frames random, with 16 updates per block."""
    arguments = {"total_frames": 160, "init_random_frames": 64, "batch_size": 16, "num_envs": 2, **changes}
    return OnlineData(arguments.pop("environment", None) or Maze(), **arguments)


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Makes writes fail beyond the given number of bytes of a file, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class FaultyMaze(Maze):
    """A maze in which one member returns the given value once.

    Args:
        source: what has the value: "observation" of the first reset, "reward" or "next observation" of a step.
        value: the value.
        step: number of the step, from 1, counting one for all members together.
        member: index of the member.
    """

    def __init__(self, source: str, value: float, step: int = 3, member: int = 1) -> None:
        super().__init__()
        self.source, self.value, self.step, self.member = source, value, step, member
        self.broken = True

    def make(self, num_envs: int, seed: int) -> EnvBase:
        env = super().make(num_envs, seed)
        if num_envs <= self.member:
            return env
        at_reset, at_step = env._reset, env._step
        steps = 0

        def reset(tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
            out = at_reset(tensordict, **kwargs)
            if steps == 0 and self.source == "observation":
                out["observation"][self.member, 0] = self.value
            return out

        def step(tensordict: TensorDictBase) -> TensorDictBase:
            nonlocal steps
            steps += 1
            out = at_step(tensordict)
            if self.broken and steps == self.step and self.source != "observation":
                out[self.source.removeprefix("next ")][self.member, 0] = self.value
            return out

        env._reset, env._step = reset, step
        return env


def saved_run(folder: Path, agent: L.LightningModule | None = None, **changes: Any) -> Path:
    """Trains for a few updates and saves the checkpoint; returns the run directory."""
    data = small_data(total_frames=480, **changes)
    agent = agent or DQS(data.observation_dim, data.action_dim, **small((8,)))
    trainer(folder, [RunCheckpoint(str(folder / "checkpoints"))]).fit(agent, data)
    return folder


def seeded(seed: int) -> Noise:
    """Returns a function that draws standard normal noise from a generator with this seed."""
    return partial(torch.randn_like, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def estimated(
    estimator: EnergyEstimator,
    log_prob: LogProb,
    x: Tensor,
    sigma: Tensor,
    support: Support,
    generator: torch.Generator | None = None,
    guide: Tensor | None = None,
) -> Estimate:
    return estimator.estimate(Posterior(log_prob, x, sigma, support, generator, guide))


def integrate(
    sampler: Sampler, denoise: Denoise, schedule: NoiseSchedule, start: Tensor, noise: Noise | None
) -> Tensor:
    """Returns a sampler's final latent from `start` at sigma_max; its steps are deterministic if `noise` is None."""
    stochastic, sampler = noise is not None, copy.copy(sampler)
    first = iter([start / schedule.sigma_max])

    def draw(like: Tensor) -> Tensor:
        begun = next(first, None)
        if begun is not None:
            return begun
        assert noise is not None
        return noise(like)

    if not stochastic:
        sampler.stochastic = False  # type: ignore[misc]  # a class variable, set only for this copy
    return sampler.trajectory(denoise, schedule, Unbounded(), start, draw).end
