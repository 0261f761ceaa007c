"""Agents from checkpoints."""

import os
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch

from dqs_lightning.agents.base import Agent
from dqs_lightning.agents.portable import Origin
from dqs_lightning.checkpoint.archive import CheckpointError, checkpoint_of, load_run
from dqs_lightning.checkpoint.restore import UntrustedNameError, named_class, saved_arguments
from dqs_lightning.registry import components, describe
from dqs_lightning.sharing.hub import download, is_address

AnyAgent = TypeVar("AnyAgent", bound=Agent)


def load_agent(path: str | os.PathLike[str], map_location: str | torch.device = "cpu") -> Agent:
    """Returns an agent, whatever its class, from its files alone; no code that the files name is run.

    Its class and those of its components must be registered, which is to be imported, or of a package that
    `restore.trust` was called with.

    Args:
        path: a run directory, a checkpoint file such as its `last.ckpt`, a folder that `save_pretrained` wrote, or
            hf://owner/name or hf://owner/name@revision of the Hugging Face Hub, which needs the extra `hub`.
        map_location: device of the agent.

    Raises:
        CheckpointError: when the file holds no agent of a known class, or one whose parameters are others.
        HubError: which is a CheckpointError, when the Hub has no such agent or cannot be reached.
    """
    return restore(Agent, path, map_location).eval()


def restore(base: type[AnyAgent], path: Any, map_location: Any, **changes: Any) -> AnyAgent:
    """Return the agent of a checkpoint, which must be a `base`, with changed arguments; see `load_agent`."""
    path = download(path) if is_address(path) else checkpoint_of(Path(path))
    checkpoint = load_run(path)
    try:
        cls = _agent_class(checkpoint, base)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    try:
        agent = cls(**{**saved_arguments(checkpoint, cls.CHECKPOINT_HYPER_PARAMS_KEY, cls), **changes})
        agent.on_load_checkpoint(checkpoint)
        agent.load_state_dict(checkpoint["state_dict"])
    except UntrustedNameError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: does not fit the {cls.__name__} of this version: {reason}") from error
    keys = cls.CHECKPOINT_HYPER_PARAMS_KEY, L.LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY
    saved = {key: checkpoint[key] for key in keys if key in checkpoint}
    saved[keys[0]] = {**saved[keys[0]], **describe(changes)}
    agent.origin = Origin(path, saved)
    return agent.to(map_location)


def _agent_class(checkpoint: dict[str, Any], base: type[AnyAgent]) -> type[AnyAgent]:
    name, path = checkpoint.get("agent"), str(checkpoint.get("agent_class", ""))
    known = components(base)
    if path.partition(".")[0] in ("", __name__.partition(".")[0]):  # of this package
        found: type | None = known.get(name) if isinstance(name, str) else None
    else:
        found = named_class(path)
    if found is None or not issubclass(found, base):
        raise ValueError(f"holds an agent of class {str(name)[:100]}; known are {', '.join(known)}")
    return found
