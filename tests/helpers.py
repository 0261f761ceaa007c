"""Small real runs that several tests start."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from tensordict import TensorDict
from torch import Tensor

from dqs_lightning.agents import DQS
from dqs_lightning.checkpoint import AtomicCheckpointIO, RunCheckpoint
from dqs_lightning.data import OnlineData
from dqs_lightning.diffusion import MLP, Ancestral, Backbone, Importance
from dqs_lightning.envs import DMControl


def small_data(**changes: Any) -> OnlineData:
    arguments = {"total_frames": 800, "init_random_frames": 400, "batch_size": 16, "num_envs": 2, **changes}
    environment = arguments.pop("environment", None) or DMControl("cartpole", "swingup", action_repeat=2)
    return OnlineData(environment, **arguments)


def small(hidden: tuple[int, ...] = (16, 16)) -> dict[str, Backbone]:
    """Arguments of an agent whose networks are that small."""
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
        "default_root_dir": folder,
        "plugins": [AtomicCheckpointIO()],
        **changes,
    }
    return L.Trainer(callbacks=callbacks, **arguments)


def one_step_batch(reward: Tensor, action: Tensor) -> TensorDict:
    """Transitions that all end: Q is the reward."""
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


def saved_run(folder: Path, agent: L.LightningModule | None = None, **changes: Any) -> Path:
    """A run directory with the checkpoint of a run of a few updates; returns the folder."""
    data = small_data(total_frames=480, **changes)
    agent = agent or DQS(data.observation_dim, data.action_dim, **small((8,)))
    trainer(folder, [RunCheckpoint(str(folder / "checkpoints"))]).fit(agent, data)
    return folder
