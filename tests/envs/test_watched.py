"""Any failure of an environment raises one error that names the environment and the cause."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faulty import RETURNED, Faulty
from helpers import cartpole, small_agent, small_data, trainer
from tensordict import TensorDict
from torchrl.envs import EnvBase, RewardScaling, TransformedEnv
from torchrl.envs.utils import check_env_specs

from dqs_lightning.collection.data import OnlineData
from dqs_lightning.envs import Environment, EnvironmentFailure, Gym, Maze
from dqs_lightning.envs.deadline import Deadline
from dqs_lightning.envs.maze import MazeBatch
from dqs_lightning.envs.watched import Watched

CAUSES = {
    "raising": r"step raised FloatingPointError: the physics diverged \(faulty.py:\d+ in fail\)",
    "sleeping": r"step did not end within 0.5 s \(faulty.py:\d+ in fail\)",
    "busy": r"step did not end within 0.5 s \(faulty.py:\d+ in fail\)",
    "waiting": r"step did not end within 0.5 s \(threading.py:\d+ in wait\)",
    **RETURNED,
}


@pytest.mark.parametrize("environment", [cartpole(), Maze(), Gym("Pendulum-v1")])
def test_a_watched_environment_behaves_like_the_environment_itself(environment: Environment) -> None:
    env, plain = Watched(lambda: environment.make(2, 3), "it"), environment.make(2, 3)
    assert env.observation_spec == plain.observation_spec and env.action_spec == plain.action_spec
    found = []
    for each in (env, plain):
        torch.manual_seed(0)
        found.append(each.rollout(60, break_when_any_done=False))
    assert set(found[0].keys(True, True)) == set(found[1].keys(True, True))
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0].keys(True, True))
    check_env_specs(env)
    env.close()


@pytest.mark.parametrize("fault", list(CAUSES))
def test_a_fault_raises_one_error_with_its_cause(fault: str) -> None:
    env = Watched(lambda: Faulty(fault).make(2, 0), "faulty", Deadline("a step", 0.5))
    begun = time.monotonic()
    with pytest.raises(EnvironmentFailure, match=f"^faulty: {CAUSES[fault]}$"):
        env.rollout(4, break_when_any_done=False)
    assert time.monotonic() - begun < 4


def test_the_first_reset_may_take_longer_than_later_ones() -> None:
    env = Watched(lambda: Faulty("sleeping", 1, call="reset").make(2, 0), "faulty", Deadline("", 0.2), Deadline("", 1))
    with pytest.raises(EnvironmentFailure, match="reset did not end within 1 s"):
        env.reset()
    env = Watched(lambda: Faulty("sleeping", 2, call="reset").make(2, 0), "faulty", Deadline("", 0.2), Deadline("", 1))
    with pytest.raises(EnvironmentFailure, match=r"reset did not end within 0\.2 s"):
        env.rollout(10, break_when_any_done=False)


def test_construction_that_hangs_raises_an_error_and_its_own_errors_are_passed_on() -> None:
    def hang() -> EnvBase:
        time.sleep(1000)

    with pytest.raises(EnvironmentFailure, match=r"^slow: construction did not end within 0\.2 s"):
        Watched(hang, "slow", start=Deadline("", 0.2))
    with pytest.raises(ValueError, match=r"^cannot be constructed$"):
        Watched(lambda: Faulty("", call="make").make(1, 0), "faulty")


def test_construction_does_not_change_the_random_state() -> None:
    def draw() -> EnvBase:
        torch.rand(3), np.random.rand(3)
        return Maze().make(1, 0)

    torch.manual_seed(0)
    np.random.seed(0)
    Watched(draw, "maze")
    after = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    assert after == (torch.rand(1), np.random.rand())


def test_snapshots_are_those_of_the_environment_if_it_supports_them() -> None:
    env, again = Watched(lambda: Maze().make(2, 0), "maze"), Watched(lambda: Maze().make(2, 9), "maze")
    found = env.rollout(5)
    again.restore(env.snapshot() or {})
    assert torch.equal(again.reset()["position"], found["next", "position"][:, -1])
    assert Watched(lambda: Gym("Pendulum-v1").make(1, 0), "pendulum").snapshot() is None
    scaled = Watched(lambda: TransformedEnv(Maze().make(2, 0), RewardScaling(0, 2)), "scaled")
    scaled.restore(env.snapshot() or {})
    assert torch.equal(scaled.reset()["position"], found["next", "position"][:, -1])


def test_a_snapshot_that_fails_gives_a_warning() -> None:
    class Closed(MazeBatch):
        def snapshot(self) -> dict[str, Any]:
            raise OSError("closed")

    with pytest.warns(UserWarning, match="^maze: snapshot raised OSError: closed "):
        assert Watched(lambda: Closed(Maze(), 1, 0), "maze").snapshot() is None


def test_an_environment_that_cannot_be_closed_gives_a_warning() -> None:
    class Open(MazeBatch):
        def close(self, *, raise_if_closed: bool = True) -> None:
            time.sleep(1000)

    with pytest.warns(UserWarning, match=r"maze: close did not end within 0\.2 s"):
        Watched(lambda: Open(Maze(), 1, 0), "maze", Deadline("", 0.2)).close()


def _cost_s(step: Callable[[TensorDict], object], action: TensorDict) -> float:
    times = []
    for _ in range(100):
        begun = time.perf_counter()
        step(action)
        times.append(time.perf_counter() - begun)
    return sorted(times)[10]


def test_the_overhead_is_a_few_microseconds_per_step() -> None:
    plain = Maze().make(1, 0)
    env = Watched(lambda: Maze().make(1, 0), "maze", Deadline("", 10))
    action = TensorDict({"action": torch.zeros(1, 2)}, [1])
    plain.reset(), env.reset()
    differences = [_cost_s(env._step, action) - _cost_s(plain._step, action) for _ in range(5)]
    assert sorted(differences)[1] < 50e-6  # measured: 5e-6, on an idle machine


@pytest.mark.parametrize("call", ["step", "reset"])
def test_a_run_ends_with_the_error_and_can_be_saved(tmp_path: Path, call: str) -> None:
    data: OnlineData = small_data(environment=Faulty("raising", 70, call=call), num_envs=1, total_frames=2_000)
    with pytest.raises(EnvironmentFailure, match=f"^faulty: {call} raised FloatingPointError"):
        trainer(tmp_path).fit(small_agent(data), data)
    state = data.rank_state()
    assert state["envs"] is None and len(state["replay"]["action"]) == data.env_frames > 0
