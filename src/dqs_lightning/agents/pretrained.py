"""An agent as a folder of files that others can load: its checkpoint, a model card, and what is known of its run."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import yaml

from dqs_lightning.checkpoint.archive import AGENT, atomic_save
from dqs_lightning.checkpoint.atomic import atomic_write
from dqs_lightning.checkpoint.restore import construct
from dqs_lightning.envs import Environment
from dqs_lightning.envs.base import one_line
from dqs_lightning.nn.observation_norm import ObservationNorm
from dqs_lightning.sharing.card import card, free_place, write
from dqs_lightning.sharing.facts import task_facts, versions
from dqs_lightning.sharing.run import SCORES, folder_of, read
from dqs_lightning.sharing.text import block

if TYPE_CHECKING:
    from dqs_lightning.agents.base import Agent

CONFIG, VIDEO = "config.yaml", "replay.mp4"
"""Names of files; the Hub shows a video of this name."""
DATA = L.LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY
PROGRAM = """import torch
from dqs_lightning import load_agent

agent = load_agent({address})
action = agent.act(torch.zeros(1, {observations}){how})  # of an observation of the environment
"""


def agent_facts(agent: "Agent") -> dict[str, Any]:
    """Returns the metadata that an agent alone decides."""
    normalised = isinstance(agent.observation_norm, ObservationNorm)
    return {
        "agent": type(agent).__name__,
        "env_frames": agent.env_frames,
        "observation_normalisation": "included" if normalised else "none",
        "versions": versions(),
    }


def content(agent: "Agent") -> dict[str, Any]:
    """Returns a checkpoint of an agent without its training: what `load_agent` and `dqs-eval` read."""
    found: dict[str, Any] = {
        "state_dict": agent.state_dict(),
        agent.CHECKPOINT_HYPER_PARAMS_KEY: dict(agent.hparams),
    }
    data = None if agent._trainer is None else getattr(agent.trainer, "datamodule", None)
    trained = {} if data is None else {DATA: dict(data.hparams)}
    agent.on_save_checkpoint(found := found | trained)
    # Texts such as ${oc.env:NAME} as they were written, and not what they were when the agent was built.
    written = agent.origin.hyperparameters if agent.origin else {}
    return {**found, **{key: value for key, value in written.items() if key not in trained}}


def save(agent: "Agent", folder: Path, address: str) -> None:
    """Writes an agent into a folder.

    Args:
        agent: the agent.
        folder: created if it is missing.
        address: by which the card loads the agent.

    Raises:
        ValueError: when README.md and agent.md are files of the user, or a file of the run is damaged.
    """
    checkpoint = content(agent)
    facts = {**agent_facts(agent), **_task(agent, checkpoint.get(DATA) or {})}
    source = folder_of(agent.origin.path) if agent.origin else None
    source = source if agent._trainer is None else Path(agent.trainer.default_root_dir)
    run = read(source, agent.env_frames)
    how = _as_evaluated(run.settings.get("evaluate"), agent)
    program = PROGRAM.format(address=json.dumps(address), observations=agent.observation_dim, how=how)
    use = f"## Use\n\nLoading runs no code of the files.\n\n{block(program, 'python')}"
    text = card(facts, run, use, agent.best_of if agent.has_q else None, VIDEO if run.video else None)
    place = free_place(folder, Path(AGENT).stem)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_save(checkpoint, folder / AGENT)
    if run.settings:
        settings = yaml.safe_dump({"seed_everything": run.seed, **run.settings}, sort_keys=False)
        atomic_write(settings.encode(), folder / CONFIG)
    if run.score and source:
        shutil.copyfile(source / SCORES, folder / SCORES)
    if run.video:
        shutil.copyfile(run.video, folder / VIDEO)
    write(text, place)


def _as_evaluated(settings: Any, agent: "Agent") -> str:
    """Returns the further arguments of `act` with which the run was evaluated."""
    if not isinstance(settings, Mapping):
        return ""
    best_of = settings.get("best_of")
    chosen = f", best_of={best_of}" if isinstance(best_of, int) and agent.has_q else ""
    return ", deterministic=True" if settings.get("deterministic") else chosen


def _task(agent: "Agent", saved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the facts of the environment in the hyperparameters of a data module; nothing where there is none."""
    if "environment" not in saved:
        return {}
    try:
        environment, transforms = construct(saved["environment"]), construct(saved.get("transforms") or [])
        if not isinstance(environment, Environment):
            return {}
    except Exception as error:  # of another package's class
        return {"unknown": one_line(error)}
    return task_facts(environment, transforms, (agent.observation_dim, agent.action_dim))
