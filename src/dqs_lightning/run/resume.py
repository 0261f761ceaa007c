"""The settings of a run: which of them may change when it is continued, and how they are saved."""

import os
from collections.abc import Mapping
from typing import Any

import lightning as L

from dqs_lightning.agents import Agent
from dqs_lightning.checkpoint.archive import CheckpointError
from dqs_lightning.registry import describe

MAY_CHANGE: dict[str, str] = {
    "model.critic_lr": "step size",
    "model.actor_lr": "step size",
    "model.learning_rate": "step size",
    "model.temperature.over_updates": "run length",
    "data.total_frames": "run length",
    "data.replay_size": "memory: a smaller buffer keeps the latest transitions",
    "data.replay_on_device": "device",
    "data.workers": "device",
    "data.collector": "device",
    "data.actors": "device",
    "data.max_policy_age": "device",
    "data.ray_address": "device",
    "data.step_timeout_s": "device",
    "model.compile_losses": "device",
    "model.cuda_graph": "device",
    "model.inner_precision": "device",
}
"""Settings of the agent, the data and the seed that may change when a run is continued, with their kind.

All others of these must stay. The settings of `evaluate`, `checkpoint`, `trainer` and its callbacks may change, except
the number of ranks.
"""
SETTINGS, FINISHED = "settings", "finished"
"""Keys of a run's checkpoint."""


def settings_of(agent: L.LightningModule, data: L.LightningDataModule) -> dict[str, Any]:
    """The settings of a run as plain values by dotted key; a component is its class name and its arguments."""
    found: dict[str, Any] = {"model": type(agent).__name__, "seed_everything": os.environ.get("PL_GLOBAL_SEED")}

    def add(key: str, value: Any) -> None:
        if isinstance(value, Mapping) and "class_path" in value:
            found[key] = str(value["class_path"]).rpartition(".")[2]
            value = value.get("init_args") or {}
        if isinstance(value, Mapping):
            for name, inner in value.items():
                add(f"{key}.{name}", inner)
        else:
            found[key] = value

    for section, module in (("data", data), ("model", agent)):  # the environment before the sizes that follow from it
        for name, value in describe(dict(module.hparams)).items():
            if not name.startswith("_"):
                add(f"{section}.{name}", value)
    return found


def changes(saved: Mapping[str, Any], now: Mapping[str, Any], source: str) -> dict[str, tuple[Any, Any]]:
    """Settings that differ from those of the run that is continued, as (old, new) by key.

    Raises:
        CheckpointError: when one of them must not change; it names the key and both values.
    """
    differing = {}
    for key in dict.fromkeys((*now, *saved)):
        old, new = saved.get(key, "missing"), now.get(key, "missing")
        if old == new or (old != old and new != new):  # both NaN
            continue
        if key not in MAY_CHANGE:
            raise CheckpointError(
                f"{source}: {key} is {old} in that run and {new} here; it must not change when a run is continued"
            )
        differing[key] = old, new
    return differing


def check_checkpoint(checkpoint: Mapping[str, Any], source: str, world_size: int) -> None:
    """Refuse a checkpoint that cannot be continued here.

    Raises:
        CheckpointError: when it is not one of `RunCheckpoint`, or other ranks wrote it.
    """
    if SETTINGS not in checkpoint:
        raise CheckpointError(
            f"{source}: holds no replay buffer and no environments, so it cannot be continued; use a run's last.ckpt, "
            "or take its weights into a new run with the callback StartFrom"
        )
    if (world := checkpoint["world_size"]) != world_size:
        raise CheckpointError(
            f"{source}: was written by {world} processes and cannot be continued by {world_size}; "
            f"set --trainer.devices={world}"
        )


def apply_changes(checkpoint: dict[str, Any], agent: Agent, changed: Mapping[str, tuple[Any, Any]]) -> None:
    """Alter what a checkpoint holds of changed settings, so that they take effect: step sizes and the run length."""
    if any(MAY_CHANGE[key] == "step size" for key in changed):
        optimizer: Any = agent.configure_optimizers()
        while isinstance(optimizer, list | tuple):  # ([optimizer], [learning-rate scheduler])
            optimizer = optimizer[0]
        saved = checkpoint["optimizer_states"][0]["param_groups"]
        for group, own in zip(saved, optimizer.param_groups, strict=True):
            group["lr"] = own["lr"]
    if not checkpoint[FINISHED] or "data.total_frames" in changed:
        # Lightning's loop state is set to the middle of its one epoch, wherever it was saved.
        fit_loop = checkpoint["loops"]["fit_loop"]
        for count in (fit_loop["epoch_progress"]["current"], fit_loop["epoch_progress"]["total"]):
            count.update(ready=1, started=1, processed=0, completed=0)
        fit_loop["epoch_loop.batch_progress"]["is_last_batch"] = False
