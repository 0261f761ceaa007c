"""Non-finite data is refused before it is counted, stored or learned from, for all agents; the message names where."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import FaultyMaze, small, small_data, trainer
from tensordict import TensorDict
from torch import nn

from dqs_lightning.agents import DQS, PPO, SAC, TD3, Agent
from dqs_lightning.checkpoint.archive import safe_load
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.collection.loader import OnlineLoader
from dqs_lightning.collection.replay import Replay
from dqs_lightning.finite import MAX_MAGNITUDE, NonFiniteError, check_block
from dqs_lightning.run.checkpoint import RunCheckpoint

VALUES = (math.nan, math.inf, -math.inf, 1e38)
AGENTS: dict[type[Agent], dict[str, Any]] = {
    DQS: {},
    SAC: {"normalise_observations": True},
    TD3: {},
    PPO: {"rollout_steps": 8, "minibatch_size": 4, "epochs": 1, "normalise_observations": True},
}


def faulty_data(source: str, value: float, **changes: Any) -> OnlineData:
    """Makes data in blocks of four steps of two members, in which the second member has a fault in the first block."""
    arguments = {"total_frames": 32, "init_random_frames": 0, "learning_starts": 8, "batch_size": 4, **changes}
    step = 4 if source == "next observation" else 2  # at another step the policy would receive it as an observation
    return small_data(environment=FaultyMaze(source, value, step), steps_per_collect=4, **arguments)


def agent_of(cls: type[Agent], data: OnlineData) -> Agent:
    return cls(data.observation_dim, data.action_dim, **small((4, 4)), **AGENTS[cls])


def act_badly(agent: Agent, value: float) -> None:
    """Sets the second action for the second member to a value."""
    calls = []

    def hook(module: nn.Module, inputs: Any, action: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        action = action.clone()
        action[1, 0] = value if len(calls) == 2 else action[1, 0]
        return action

    agent.register_forward_hook(hook)


@pytest.mark.parametrize("cls", AGENTS)
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("source", ["observation", "action", "reward", "next observation"])
def test_non_finite_data_is_refused_before_it_is_used(
    tmp_path: Path, cls: type[Agent], value: float, source: str
) -> None:
    data = faulty_data(source, value)
    agent = agent_of(cls, data)
    if source == "action":
        act_badly(agent, value)
    before = {name: entry.clone() for name, entry in agent.state_dict().items()}
    name = source if source == "reward" else f"{source}[0]"
    with pytest.raises(NonFiniteError, match=rf"frame \d: {re.escape(f'{name} of environment 1 is {value:.4g}')}[,;]"):
        trainer(tmp_path).fit(agent, data)
    assert all(torch.equal(entry, before[key]) for key, entry in agent.state_dict().items())
    kept = data.rank_state()
    assert data.env_frames == 0 and kept.get("replay") is None and not kept["returns"]


def block() -> TensorDict:
    following = {"observation": torch.zeros(2, 3, 5, 4), "reward": torch.zeros(2, 3, 5, 1)}
    entries = {"observation": torch.zeros(2, 3, 5, 4), "action": torch.zeros(2, 3, 5, 2)}
    return TensorDict({**entries, "next": TensorDict(following, [2, 3, 5])}, [2, 3, 5])


def test_the_earliest_non_finite_value_is_named() -> None:
    found = block()
    found["next", "reward"][0, 0, 3] = math.nan
    found["next", "observation"][1, 2, 2, 3] = -math.inf
    found["action"][1, 1, 3, 1] = math.nan
    with pytest.raises(NonFiniteError, match=r"frame 1,042, rank 1: next observation\[3\] of environment 5 is -inf"):
        check_block(found, frames=1_000, frames_per_step=14, rank=1)


def test_numbers_are_accepted_if_their_squares_are_finite() -> None:
    found = block()
    largest = torch.tensor(MAX_MAGNITUDE)
    found["next", "reward"][1, 1, 1] = -largest
    check_block(found, 0, 1)
    assert largest.square().isfinite()
    found["next", "reward"][1, 1, 1] = -largest.nextafter(torch.tensor(math.inf))
    with pytest.raises(NonFiniteError, match=r"is -1.845e\+19, at step 2 of 5"):
        check_block(found, 0, 1)


@pytest.mark.parametrize("n_steps", [1, 2])
def test_the_last_checkpoint_is_kept_and_continues_past_the_non_finite_value(tmp_path: Path, n_steps: int) -> None:
    """The fault occurs once, in the fifth block; the replay buffer of the checkpoint before does not contain it."""
    arguments = {"environment": FaultyMaze("reward", math.nan, step=18), "steps_per_collect": 4, "batch_size": 4}
    arguments |= {"total_frames": 64, "init_random_frames": 8, "updates_per_step": 0.25, "n_steps": n_steps}
    data = small_data(**arguments)
    agent = agent_of(DQS, data)
    first = trainer(tmp_path, [RunCheckpoint(str(tmp_path), every_n_updates=2)])
    with pytest.raises(NonFiniteError, match="frame 36: reward of environment 1 is nan"):
        first.fit(agent, data)
    assert first.global_step == 6
    kept = safe_load(tmp_path / "last.ckpt")
    assert kept["global_step"] == 6
    replay = safe_load(next(tmp_path.glob("step=6-*-rank=0.pt")))["replay"]
    assert all(replay["next"][key].isfinite().all() for key in ("observation", "reward"))
    second = trainer(tmp_path, [RunCheckpoint(str(tmp_path))])
    arguments["environment"].broken = False
    data = small_data(**arguments)
    second.fit(agent_of(DQS, data), data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert second.global_step == 14 and data.env_frames == 64


def test_a_saved_replay_buffer_with_a_non_finite_value_is_refused() -> None:
    data = small_data(environment=FaultyMaze("reward", 0.0), steps_per_collect=4, total_frames=16, init_random_frames=8)
    agent = agent_of(DQS, data)
    loader = OnlineLoader(data, agent, data.source(agent))
    list(loader)
    state = loader.snapshot()
    state["replay"]["next"]["reward"][3] = math.inf
    other = data.source(agent)
    with pytest.raises(NonFiniteError, match="reward in the replay buffer is inf, so this checkpoint cannot"):
        other.restore(state)
    assert isinstance(other, Replay) and len(other.buffer) == 0
