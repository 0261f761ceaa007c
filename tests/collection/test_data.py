"""Tests of online data: transitions equal those of the environment, and updates follow the configured ratio."""

import multiprocessing
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from faulty import Faulty
from helpers import cartpole, small, small_agent, small_data, trainer
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dqs_callbacks import Throughput
from dqs_lightning.agents import DQS
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.envs import DMControl, Environment, Gym, Maze
from dqs_lightning.run.checkpoint import RunCheckpoint


class Keep(L.Callback):
    def __init__(self) -> None:
        self.batches: list[TensorDictBase] = []
        self.frames: list[int] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs, batch, batch_idx) -> None:
        self.batches.append(batch)
        self.frames.append(OnlineData.of(trainer).env_frames)


class _Counting(DQS):
    """An agent whose action is the number of its updates divided by 1000."""

    count: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, observation: Tensor) -> Tensor:
        return (self.count / 1000).expand(*observation.shape[:-1], self.action_dim)

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> None:
        super().training_step(batch, batch_idx)
        self.count += 1


def run(folder: Path, data: OnlineData) -> tuple[Keep, L.Trainer]:
    keep = Keep()
    fit = trainer(folder, [keep])
    fit.fit(small_agent(data), data)
    return keep, fit


@pytest.mark.parametrize(("ratio", "expected"), [(1.0, 224), (0.25, 56), (2.0, 448), (0.3, 67)])
def test_the_number_of_updates_and_frames_follows_the_ratio(tmp_path: Path, ratio: float, expected: int) -> None:
    # A block is 2 environments x 8 steps x 2 frames = 32 frames. There are 27 blocks, the first 13 with random actions.
    data = small_data(updates_per_step=ratio, total_frames=848)
    keep, fit = run(tmp_path, data)
    assert fit.global_step == len(keep.batches) == expected
    assert data.env_frames == 27 * 32
    assert keep.frames[0] == 14 * 32
    assert keep.batches[0].shape == (16,)


def test_stored_transitions_equal_those_of_the_environment(tmp_path: Path) -> None:
    data = small_data()
    run(tmp_path, data)
    replay = data.rank_state()["replay"]
    # Rows of a block are (environment, time): within one environment the next observation is the following row's.
    observation = replay["observation"].reshape(-1, 2, 8, data.observation_dim)
    following = replay["next"]["observation"].reshape(-1, 2, 8, data.observation_dim)
    assert torch.equal(observation[:, :, 1:], following[:, :, :-1])
    env = DMControl("cartpole", "swingup", action_repeat=2).make(2, seed=torch.initial_seed() % 2**31)
    tensordict = env.reset()
    for step in range(8):
        assert torch.equal(tensordict["observation"], observation[0, :, step])
        tensordict["action"] = replay["action"].reshape(-1, 2, 8, 1)[0, :, step]
        stepped, tensordict = env.step_and_maybe_reset(tensordict)
        assert torch.equal(stepped["next", "reward"], replay["next"]["reward"].reshape(-1, 2, 8, 1)[0, :, step])


def test_warm_up_actions_are_uniform_on_the_action_set(tmp_path: Path) -> None:
    data = small_data(init_random_frames=6_400, total_frames=6_464, replay_size=10_000)
    run(tmp_path, data)
    actions = data.rank_state()["replay"]["action"][:3200].flatten()
    histogram = torch.histc(actions, 8, -1, 1) / 3200
    assert (histogram - 1 / 8).abs().max() < 0.03  # 5 standard deviations of a bin


@pytest.mark.parametrize(("random", "starts", "of_chance"), [(0, 320, 0), (128, 320, 4), (320, 128, 10)])
def test_between_random_frames_and_learning_starts_the_untrained_policy_collects(
    tmp_path: Path, random: int, starts: int, of_chance: int
) -> None:
    data, keep = small_data(init_random_frames=random, learning_starts=starts, total_frames=640), Keep()
    fit = trainer(tmp_path, [keep])
    fit.fit(_Counting(data.observation_dim, data.action_dim, **small()), data)
    assert keep.frames[0] == 11 * 32 and fit.global_step == 10 * 16
    actions = data.rank_state()["replay"]["action"].reshape(20, 16)
    assert (actions[:of_chance].abs() > 0.01).any(-1).all()
    assert (actions[of_chance:11] == 0).all()  # before the first update
    assert (actions[11:] > 0).all()


def test_terminated_and_truncated_are_stored_separately(tmp_path: Path) -> None:
    data = small_data(environment=DMControl("cartpole", "swingup", action_repeat=40), total_frames=12_000)
    run(tmp_path, data)
    following = data.rank_state()["replay"]["next"]
    assert following["truncated"].any() and not following["terminated"].any()


def test_a_full_buffer_overwrites_the_oldest_transitions(tmp_path: Path) -> None:
    data = small_data(replay_size=64)
    run(tmp_path, data)
    assert len(data.rank_state()["replay"]["action"]) == 64


@pytest.mark.parametrize("size", [48, 64, 100])
def test_a_buffer_of_another_size_is_restored_with_the_latest_transitions(tmp_path: Path, size: int) -> None:
    data = small_data(replay_size=64, total_frames=480)  # 240 transitions: the oldest is at index 240 - 3 * 64 = 48
    run(tmp_path, data)
    state = data.rank_state()
    kept = state["replay"]["observation"]
    in_order = torch.cat([kept[48:], kept[:48]])
    replay = small_data(replay_size=size).source(small_agent(data))
    replay.restore(state)
    assert len(replay.buffer) == min(size, 64)
    new = TensorDict.from_dict(state["replay"], auto_batch_size=True, batch_dims=1)[:16]
    new["observation"] = torch.full_like(new["observation"], 7.0)
    replay.buffer.extend(new)
    left = max(0, 64 + 16 - size)
    expected = torch.cat([in_order[left:], new["observation"]])
    found = replay.snapshot()["replay"]["observation"]
    first = replay.snapshot()["writer"]["_cursor"] % len(found)
    assert torch.equal(torch.cat([found[first:], found[:first]]), expected)


@pytest.mark.parametrize(("on_device", "place"), [(True, "meta"), (False, "cpu")])
def test_replay_on_device_sets_the_device_of_the_buffer(on_device: bool, place: str) -> None:
    data = small_data(replay_on_device=on_device)
    replay = data.source(small_agent(data).to("meta"))
    replay.buffer.extend(TensorDict({"observation": torch.zeros(4, 5)}, [4]))
    assert replay.buffer[:]["observation"].device.type == place


def fit_in_parts(folder: Path, environment: Environment, *parts: tuple[int, int]) -> dict[str, Tensor]:
    """Trains a run in parts, each (workers, updates until it stops); returns the replay buffer and the weights."""
    for index, (workers, updates) in enumerate(parts):
        L.seed_everything(3)
        frames = {
            "total_frames": 320 * environment.action_repeat,
            "init_random_frames": 160 * environment.action_repeat,
        }
        data = small_data(environment=environment, workers=workers, updates_per_step=0.5, **frames)
        agent = small_agent(data, **small())
        run = trainer(folder, [RunCheckpoint(str(folder))], max_steps=updates)
        run.fit(agent, data, ckpt_path=folder / "last.ckpt" if index else None, weights_only=True)
    replay = TensorDict.from_dict(data.rank_state()["replay"], auto_batch_size=True).flatten_keys(".")
    assert not multiprocessing.active_children()
    return {**replay.to_dict(), **agent.state_dict()}


@pytest.mark.parametrize("environment", [cartpole(action_repeat=20), Maze(), Gym("Pendulum-v1")])
def test_workers_collect_the_same_data_as_one_process_and_continue_in_mid_episode(
    tmp_path: Path, environment: Environment
) -> None:
    whole = fit_in_parts(tmp_path / "whole", environment, (0, -1))
    exact = not isinstance(environment, Gym)  # Gymnasium has no snapshots
    parts = fit_in_parts(tmp_path / "parts", environment, (2, -1) if not exact else (2, 37), *([(2, -1)] * exact))
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name


@pytest.mark.parametrize(("environment", "then"), [(Gym("Pendulum-v1"), 2), (Maze(), 0)])
def test_a_run_with_workers_continues_with_new_episodes_without_snapshots(
    tmp_path: Path, environment: Environment, then: int
) -> None:
    with pytest.warns(UserWarning, match="cannot be restored in mid-episode: their episodes start anew"):
        found = fit_in_parts(tmp_path, environment, (2, 37), (then, -1))
    assert len(found["action"]) == 320


def test_no_transition_joins_steps_before_and_after_a_worker_is_replaced(tmp_path: Path) -> None:
    data = small_data(
        environment=Faulty("killed", at=90, call="step"),  # each worker is killed in its 90th step
        num_envs=2,
        workers=1,
        total_frames=600,
        init_random_frames=64,
        n_steps=3,
        updates_per_step=0.1,
    )
    run = trainer(tmp_path, [Throughput()], log_every_n_steps=1)
    with pytest.warns(UserWarning, match="killed by SIGKILL"):
        run.fit(small_agent(data), data)
    assert data.env_frames == 608
    assert data.restarts.used == run.callback_metrics["time/worker_restarts"] == 3
    replay: dict[str, Any] = data.rank_state()["replay"]
    displacement = (replay["next"]["observation"] - replay["observation"]).abs()
    assert (displacement <= 3 * 0.02 + 1e-6).all()  # no transition joins two episodes


def test_an_agent_learns_from_gymnasium(tmp_path: Path) -> None:
    keep, _ = run(tmp_path, small_data(environment=Gym("Pendulum-v1"), total_frames=480))
    assert keep.batches[0]["observation"].shape == (16, 3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("total_frames", 0),
        ("num_envs", 0),
        ("batch_size", 0),
        ("replay_size", 0),
        ("n_steps", 0),
        ("steps_per_collect", 0),
        ("init_random_frames", 800),
        ("learning_starts", 800),
        ("learning_starts", -1),
        ("updates_per_step", 0.0),
        ("step_timeout_s", 0.0),
        ("workers", 3),
        ("workers", -1),
    ],
)
def test_numbers_out_of_range_are_named(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{key}={value}"):
        small_data(**{key: value})
