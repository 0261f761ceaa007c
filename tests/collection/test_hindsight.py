"""Tests of hindsight relabelling: a sampled transition was collected, and its goal is from its episode's future."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict
from helpers import small, small_agent, small_data, trainer
from tensordict import TensorDict, TensorDictBase

from dqs_lightning.agents import PPO
from dqs_lightning.cli import fit
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.collection.hindsight import PLACE
from dqs_lightning.collection.loader import OnlineLoader
from dqs_lightning.collection.replay import Replay
from dqs_lightning.envs import Environment, Gym, Maze
from dqs_lightning.envs.goals import Goals
from dqs_lightning.envs.transforms import CatFrames, RewardScaling
from dqs_lightning.run.checkpoint import RunCheckpoint

NEAR = 0.3
ACHIEVED, DESIRED, REST = slice(0, 2), slice(2, 4), slice(4, 7)
"""Slices of the flat observation. `REST` is the seed of the member, its episode and its step."""


class Reach(gymnasium.Env):
    """A point on a plane. An episode terminates near its goal or is truncated after 3 to 12 steps."""

    action_space = Box(-1, 1, (2,))
    goal_space = Box(-9, 9, (2,))
    observation_space = Dict(
        {"desired_goal": goal_space, "achieved_goal": goal_space, "observation": Box(-np.inf, np.inf, (3,))}
    )
    episode = -1
    member = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.member = self.member if seed is None else seed % 100_000
        self.place, self.goal = self.np_random.uniform(-1, 1, (2, 2)).astype(np.float32)
        self.episode, self.step_count, self.length = self.episode + 1, 0, self.np_random.integers(3, 13)
        return self.observed(), {}

    def observed(self) -> dict[str, Any]:
        rest = np.array([self.member, self.episode, self.step_count], np.float32)
        return {"achieved_goal": self.place, "desired_goal": self.goal, "observation": rest}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.step_count += 1
        self.place = (self.place + 0.3 * action + self.np_random.normal(0, 0.01, 2)).clip(-9, 9).astype(np.float32)
        reward = self.compute_reward(self.place, self.goal, {})
        terminated = self.compute_terminated(self.place, self.goal, {})
        return self.observed(), reward, terminated, self.step_count >= self.length, {}

    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: dict) -> Any:
        return -np.linalg.norm(achieved_goal - desired_goal, axis=-1)

    def compute_terminated(self, achieved_goal: Any, desired_goal: Any, info: dict) -> bool:
        return bool(np.linalg.norm(achieved_goal - desired_goal) < NEAR)  # not vectorised over goals


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    gymnasium.register("HindsightReach-v0", Reach)
    yield
    del gymnasium.registry["HindsightReach-v0"]


def reach_data(**changes: Any) -> OnlineData:
    arguments = {
        "environment": Gym("HindsightReach-v0"), "hindsight": 0.7, "total_frames": 1_200, "init_random_frames": 96,
        "num_envs": 3, "updates_per_step": 0.25,
    }  # fmt: skip
    return small_data(**{**arguments, **changes})


class History:
    """Collected steps by member, episode and step, and the number of samples whose goal is not their episode's."""

    def __init__(self, strategy: str = "future", scale: float = 1.0) -> None:
        self.strategy, self.scale = strategy, scale
        self.steps: dict[tuple[int, ...], TensorDictBase] = {}
        self.relabelled = self.samples = 0
        self.latest: dict[tuple[int, ...], int] = {}

    def add(self, block: TensorDictBase) -> None:
        for row in block.reshape(-1).unbind(0):
            key = tuple(row["observation"][REST].int().tolist())
            assert key not in self.steps
            self.steps[key], self.latest[key[:2]] = row, key[2]

    def check(self, batch: TensorDictBase) -> None:
        for row in batch.unbind(0):
            *episode, step = key = tuple(row["observation"][REST].int().tolist())
            real, goal = self.steps[key], row["observation"][DESIRED]
            assert torch.equal(row["action"], real["action"])
            assert torch.equal(row["next", "truncated"], real["next", "truncated"])
            for of_row, of_real in ((row, real), (row["next"], real["next"])):
                assert torch.equal(of_row["observation"][DESIRED], goal)
                for part in (ACHIEVED, REST):
                    assert torch.equal(of_row["observation"][part], of_real["observation"][part])
            self.samples += 1
            if not torch.equal(goal, real["observation"][DESIRED]):
                self.relabelled += 1
                last = self.latest[tuple(episode)]
                later = range(step, last + 1) if self.strategy == "future" else [last]
                achieved = [self.steps[*episode, at]["next", "observation"][ACHIEVED] for at in later]
                assert any(torch.equal(goal, one) for one in achieved), (key, last)
            distance = (row["next", "observation"][ACHIEVED] - goal).norm()
            torch.testing.assert_close(row["next", "reward"], -self.scale * distance.reshape(1))
            assert bool(row["next", "terminated"]) == bool(distance < NEAR)


def watched(data: OnlineData, history: History) -> tuple[OnlineLoader, Replay]:
    """Returns a loader that checks all its blocks and batches, and its replay buffer."""
    agent = small_agent(data, **small())
    source = data.source(agent)
    assert isinstance(source, Replay)
    original = source.batches

    def batches(block: TensorDictBase, due: int, actor: int = 0) -> list[TensorDictBase]:
        history.add(block)
        found = original(block, due)
        for batch in found:
            history.check(batch)
        return found

    source.batches = batches  # type: ignore[method-assign]  # checks what it returns
    return OnlineLoader(data, agent, source), source


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        ("future", {}),
        ("final", {}),
        ("future", {"replay_size": 100}),  # not a multiple of a block
        ("final", {"replay_size": 24}),  # one block
        ("future", {"workers": 3, "steps_per_collect": 5}),
        ("final", {"num_envs": 1, "steps_per_collect": 1, "transforms": [RewardScaling(0.0, 0.1)]}),
    ],
)
def test_reward_and_termination_of_every_sampled_transition_match_its_goal(strategy: str, changes: dict) -> None:
    torch.manual_seed(0)
    history = History(strategy, 0.1 if "transforms" in changes else 1.0)
    loader, source = watched(reach_data(hindsight_strategy=strategy, **changes), history)
    assert sum(1 for _ in loader) == loader.clock.total_updates
    assert history.samples >= 16 * 200
    assert abs(history.relabelled / history.samples - 0.7) < 0.05
    assert len({key[:2] for key in history.steps}) > 50  # episodes
    assert set(PLACE) <= source.buffer[:].keys()


def test_goals_are_drawn_uniformly_from_the_rest_of_the_episode() -> None:
    """The goals extend beyond the block, up to the end of the episode."""
    data = reach_data(hindsight=1.0, num_envs=2, steps_per_collect=4)
    replay = data.source(small_agent(data, **small()))
    assert isinstance(replay, Replay) and replay.hindsight is not None
    for block in synthetic(2, 4, 4, ends=[(0, 9), (1, 14)]):
        replay.batches(block, 0)
    drawn = replay.buffer[:].clone().set("index", torch.arange(32))[4:5].expand(30_000).clone()  # member 1, step 0
    goals = replay.hindsight.relabel(replay.buffer, drawn)["observation"][:, DESIRED]
    counts = torch.bincount((goals[:, 0] * 100).round().int() % 100, minlength=16) / 30_000
    assert counts[15:].sum() == 0 and (counts[:15] - 1 / 15).abs().max() < 0.01


def synthetic(envs: int, steps: int, blocks: int, ends: list[tuple[int, int]], first: int = 0) -> list[TensorDict]:
    """Makes blocks whose achieved goals are (member + time / 100, 0)."""
    made = []
    for block in range(first, first + blocks):
        time = torch.arange(block * steps, (block + 1) * steps).expand(envs, -1).float()
        member = torch.arange(envs).unsqueeze(-1).float()
        observation = torch.zeros(envs, steps, 7)
        observation[..., 0] = member + time / 100
        ended = torch.zeros(envs, steps, 1, dtype=torch.bool)
        for env, at in ends:
            if at // steps == block:
                ended[env, at % steps] = True
        following = {
            "observation": observation.clone(), "reward": torch.zeros(envs, steps, 1),
            "terminated": torch.zeros_like(ended), "truncated": ended, "done": ended,
        }  # fmt: skip
        content = {"observation": observation, "action": torch.zeros(envs, steps, 2), "next": following}
        made.append(TensorDict(content, [envs, steps]))
    return made


@pytest.mark.parametrize(("before", "after"), [(1000, 1000), (40, 40), (40, 24), (40, 100), (24, 1000)])
def test_a_restored_buffer_relabels_as_the_saved_one_would(before: int, after: int) -> None:
    ends = [(0, 3), (1, 9), (0, 15), (1, 21), (0, 33)]
    replays = []
    for size in (before, after):
        data = reach_data(replay_size=size, num_envs=2, steps_per_collect=4)
        replays.append(data.source(small_agent(data, **small())))
    saved, restored = replays
    for block in synthetic(2, 4, 6, ends):
        saved.batches(block, 0)
    restored.restore(saved.snapshot())
    for block in synthetic(2, 4, 4, ends, first=6):
        results = []
        for replay in replays:
            torch.manual_seed(0)
            results.append(replay.batches(block, 2))
        for batch, other in zip(*results, strict=True):
            if before == after:
                assert (batch == other).all()
            check_synthetic(other, ends)
    stored = restored.snapshot()["replay"]
    for observation, left in zip(stored["observation"], stored[PLACE[0]], strict=True):
        env, time = int(observation[0]), round(float(observation[0]) % 1 * 100)
        last = min((at for member, at in ends if member == env and at >= time), default=39)
        assert int(left) == last - time, (env, time)


def check_synthetic(batch: TensorDictBase, ends: list[tuple[int, int]]) -> None:
    for observation in batch["observation"]:
        goal = round(float(observation[2]), 2)
        if goal:
            env, time = int(observation[0]), round(float(observation[0]) % 1 * 100)
            last = min((at for member, at in ends if member == env and at >= time), default=39)
            assert int(goal) == env and time <= round(goal % 1 * 100) <= last


def test_new_episodes_after_a_restart_provide_no_goals_for_earlier_ones() -> None:
    torch.manual_seed(0)
    history = History()
    loader, _ = watched(reach_data(), history)
    iterator = iter(loader)
    for _ in range(40):
        next(iterator)
    state = loader.snapshot()
    iterator.close()
    assert any(state["running"]) and state["envs"] is None
    continued, _ = watched(reach_data(), history)
    continued.restore(state)
    with pytest.warns(UserWarning, match="their episodes start anew"):
        assert sum(1 for _ in continued) > 100
    assert abs(history.relabelled / history.samples - 0.7) < 0.05


def test_a_run_trains_and_continues_with_hindsight(tmp_path: Path) -> None:
    for updates in (10, -1):
        data = reach_data(total_frames=240)
        run = trainer(tmp_path, [RunCheckpoint(str(tmp_path))], max_steps=updates)
        last = tmp_path / "last.ckpt" if updates < 0 else None
        run.fit(small_agent(data, **small()), data, ckpt_path=last, weights_only=True)
    assert run.global_step == 36 and data.observation_dim == 7
    assert len(data.rank_state()["replay"]["action"]) == 240


@pytest.mark.parametrize("id", ["FetchReach-v4", "PointMaze_UMaze-v3"])
def test_a_short_run_on_gymnasium_robotics(tmp_path: Path, id: str) -> None:
    pytest.importorskip("gymnasium_robotics")
    environment = Gym(id)
    goals = environment.hindsight_goals()
    data = reach_data(environment=environment, num_envs=2, total_frames=200)
    agent = small_agent(data, **small())
    run = trainer(tmp_path)
    run.fit(agent, data)
    replay = TensorDict.from_dict(data.rank_state()["replay"], auto_batch_size=True, batch_dims=1)
    following = replay["next", "observation"]
    reward, terminated = goals.outcome(following[:, goals.achieved], following[:, goals.desired])
    assert torch.equal(reward, replay["next", "reward"]) and torch.equal(terminated, replay["next", "terminated"])
    drawn = data._loader.source.batches(replay.reshape(2, -1)[:, : data.steps_per_collect], 4)
    reached, _ = goals.outcome(following[:1, goals.achieved], following[:1, goals.achieved])
    assert run.global_step > 0 and torch.cat([batch["next", "reward"] for batch in drawn]).max() == reached


class PlainReward(Reach):
    compute_terminated = None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (Gym("Pendulum-v1"), r"id=Pendulum-v1: has no goals: its observation must be a Dict"),
        (Maze(), r"Maze \(maze-four-goals\) is no goal environment"),
    ],
)
def test_environments_without_goals_are_refused(environment: Environment, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        environment.hindsight_goals()


def test_an_environment_without_compute_terminated_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has no method compute_terminated\("):
        Goals(PlainReward())


def test_an_on_policy_agent_is_refused() -> None:
    data = reach_data()
    with pytest.raises(ValueError, match=r"hindsight=0\.7: must be 0 for PPO"):
        data.source(PPO(7, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_steps": 2}, "n_steps=2: must be 1 with hindsight=0.7"),
        ({"environment": "repeated"}, "environment.action_repeat=2: must be 1"),
        ({"transforms": [CatFrames(2)]}, "transforms.0=CatFrames: must be of the reward alone"),
        ({"replay_size": 23}, "replay_size=23: must be >= num_envs"),
        ({"hindsight": 1.5}, r"hindsight=1.5: must be in \[0, 1\]"),
        ({"hindsight_strategy": "past"}, "hindsight_strategy=past: must be one of future, final"),
    ],
)
def test_settings_that_exclude_hindsight_are_refused(changes: dict, message: str) -> None:
    if "environment" in changes:
        changes = {"environment": Gym("HindsightReach-v0", action_repeat=2)}
    with pytest.raises(ValueError, match=message):
        data = reach_data(**changes)
        data.source(small_agent(data, **small()))


def test_dqs_fit_refuses_hindsight_without_goals_in_one_line_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dqs-fit", "--data.environment=Maze", "--data.hindsight=0.5", "--run_dir=run"])
    assert fit.main() == 2
    err = capsys.readouterr().err
    assert (
        err.startswith("dqs-fit: data.hindsight=0.5: Maze (maze-four-goals) is no goal environment")
        and err.count("\n") == 1
    )
    assert not list(tmp_path.iterdir())
