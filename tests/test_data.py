"""The data that an agent learns from is what the environment did, as often and in such amounts as asked."""

from pathlib import Path

import lightning as L
import pytest
import torch
from helpers import small_agent, small_data, trainer
from tensordict import TensorDictBase

from dqs_lightning.data import OnlineData
from dqs_lightning.envs import DMControl, Gym


class Keep(L.Callback):
    def __init__(self) -> None:
        self.batches: list[TensorDictBase] = []
        self.frames: list[int] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs, batch, batch_idx) -> None:
        self.batches.append(batch)
        self.frames.append(OnlineData.of(trainer).env_frames)


def run(folder: Path, data: OnlineData) -> tuple[Keep, L.Trainer]:
    keep = Keep()
    fit = trainer(folder, [keep])
    fit.fit(small_agent(data), data)
    return keep, fit


@pytest.mark.parametrize(("ratio", "expected"), [(1.0, 224), (0.25, 56), (2.0, 448), (0.3, 67)])
def test_updates_follow_the_ratio_and_the_clock(tmp_path: Path, ratio: float, expected: int) -> None:
    # A block is 2 environments x 8 steps x 2 frames = 32 frames: 27 of them, the first 13 at random.
    data = small_data(updates_per_step=ratio, total_frames=848)
    keep, fit = run(tmp_path, data)
    assert fit.global_step == len(keep.batches) == expected
    assert data.env_frames == 27 * 32
    assert keep.frames[0] == 14 * 32
    assert keep.batches[0].shape == (16,)


def test_transitions_are_those_of_the_environment(tmp_path: Path) -> None:
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


def test_terminated_and_truncated_stay_apart(tmp_path: Path) -> None:
    data = small_data(environment=DMControl("cartpole", "swingup", action_repeat=40), total_frames=12_000)
    run(tmp_path, data)
    following = data.rank_state()["replay"]["next"]
    assert following["truncated"].any() and not following["terminated"].any()


def test_the_buffer_forgets_the_oldest(tmp_path: Path) -> None:
    data = small_data(replay_size=64)
    run(tmp_path, data)
    assert len(data.rank_state()["replay"]["action"]) == 64


def test_processes_collect_like_one(tmp_path: Path) -> None:
    alone, divided = small_data(total_frames=448), small_data(total_frames=448, workers=2)
    L.seed_everything(3)
    run(tmp_path, alone)
    L.seed_everything(3)
    run(tmp_path, divided)
    # The same seeds start the same episodes, whichever process holds them.
    first = [
        data.rank_state()["replay"]["observation"].reshape(-1, 2, 8, data.observation_dim)[0, :, 0]
        for data in (alone, divided)
    ]
    assert torch.equal(*first)


def test_learns_from_gymnasium_too(tmp_path: Path) -> None:
    keep, _ = run(tmp_path, small_data(environment=Gym("Pendulum-v1"), total_frames=480))
    assert keep.batches[0]["observation"].shape == (16, 3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("total_frames", 0),
        ("num_envs", 0),
        ("batch_size", 0),
        ("replay_size", 0),
        ("steps_per_collect", 0),
        ("init_random_frames", 800),
        ("updates_per_step", 0.0),
        ("workers", 3),
        ("workers", -1),
    ],
)
def test_numbers_out_of_range_are_named(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{key}={value}"):
        small_data(**{key: value})
