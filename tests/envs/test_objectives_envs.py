"""Tests of environments with a reward vector: weights, rewards, exact continuation, and refused arguments."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import Env, register, spaces
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs.utils import check_env_specs, step_mdp

from dqs_lightning.envs import MOGym, Objectives, ObjectivesMaze
from dqs_lightning.envs.objectives import WeightedBatch
from dqs_lightning.envs.restarts import Restarts
from dqs_lightning.envs.workers import WorkerBatch
from dqs_lightning.registry import describe


def test_meets_torchrls_specs_and_rewards_are_weighted_sums() -> None:
    env = ObjectivesMaze().make(3, seed=0)
    check_env_specs(env)
    steps = env.rollout(70, break_when_any_done=False)
    weights, vector = steps["observation"][..., -2:], steps["next", "objectives"]
    torch.testing.assert_close(steps["next", "reward"], (weights * vector).sum(-1, keepdim=True))
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 70))
    assert torch.equal(steps["observation"][..., :2], steps["position"])
    assert steps["next", "done"].any() and (vector[..., 1] < 0).all()


def test_weights_change_only_where_an_episode_begins() -> None:
    steps = ObjectivesMaze(horizon=4).make(3, seed=0).rollout(13, break_when_any_done=False)
    weights = steps["observation"][..., -2:]
    assert torch.equal(steps["next", "observation"][..., -2:], weights)  # also of the last step of an episode
    changed = (weights[:, 1:] != weights[:, :-1]).any(-1)
    assert torch.equal(changed, steps["next", "done"][:, :-1, 0])


def test_given_weights_are_those_of_all_episodes() -> None:
    steps = ObjectivesMaze([0.25, 0.75], horizon=4).make(2, seed=0).rollout(9, break_when_any_done=False)
    assert torch.equal(steps["observation"][..., -2:], torch.tensor([0.25, 0.75]).expand(2, 9, 2))


def test_members_have_independent_streams_of_weights() -> None:
    three, one = ObjectivesMaze().make(3, seed=5).reset(), ObjectivesMaze().make(1, seed=7).reset()
    assert torch.equal(three["observation"][2], one["observation"][0])
    assert len(three["observation"][:, -2].unique()) == 3


def test_a_goal_pays_its_vector_and_each_step_its_own() -> None:
    goals, rewards = [[0.5, 0.0], [-0.5, 0.0]], [[2.0, 0.0], [0.0, 3.0]]
    env = ObjectivesMaze([0.5, 0.5], [], goals, rewards, [-1.0, 0.0], 0.1, [0.0, 0.0], 0.0, 0.5).make(3, seed=0)
    start = env.reset()
    start["action"] = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    after = env.step(start)["next"]
    assert after["objectives"].tolist() == [[1.0, 0.0], [-1.0, 3.0], [-1.0, 0.0]]
    assert after["reward"].flatten().tolist() == [0.5, 1.0, -0.5]
    assert after["terminated"].flatten().tolist() == [True, True, False]


def walk(env: Any, tensordict: TensorDictBase, actions: list[Tensor]) -> Tensor:
    seen = []
    for action in actions:
        tensordict["action"] = action
        stepped, tensordict = env.step_and_maybe_reset(tensordict)
        seen.append(torch.cat([tensordict["observation"], stepped["next", "objectives"]], -1))
    return torch.stack(seen)


def test_a_snapshot_continues_bitwise() -> None:
    maze = ObjectivesMaze(goals=[[0.8, -0.8]], goal_rewards=[[1.0, 0.0]], horizon=9)  # no episode ends in step 13
    env, other = maze.make(4, 1), maze.make(4, 99)
    steps = env.rollout(13, break_when_any_done=False)
    saved = env.snapshot()
    actions = [env.rand_action()["action"] for _ in range(30)]
    expected = walk(env, env.maybe_reset(step_mdp(steps[:, -1])), actions)
    other.restore(saved)
    assert torch.equal(walk(other, other.maybe_reset(other.reset()), actions), expected)


@pytest.mark.slow
def test_workers_have_the_episodes_of_one_process() -> None:
    maze = ObjectivesMaze(horizon=5)
    actions = [2 * torch.rand(4, 2) - 1 for _ in range(12)]
    expected = walk(env := maze.make(4, 3), env.reset(), actions)
    env = WorkerBatch(maze, 4, 2, 3, 60.0, Restarts())
    try:
        assert torch.equal(walk(env, env.reset(), actions), expected)
    finally:
        env.close()


def test_the_weights_are_a_part_of_the_interface() -> None:
    parts = ObjectivesMaze().interface().observation
    assert [tuple(part) for part in parts] == [("position", 2), ("weights", 2)]


def test_its_description_holds_only_plain_values() -> None:
    maze = ObjectivesMaze(**describe(ObjectivesMaze([0.5, 0.5]))["init_args"])
    assert maze.objectives == 2 and list(maze.weights or []) == [0.5, 0.5] and len(maze.goal_rewards) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": [1.0]}, r"weights=\[1.0\]: must be 2 numbers >= 0 with the sum 1"),
        ({"weights": [0.5, 0.6]}, "with the sum 1"),
        ({"weights": [-0.5, 1.5]}, "weights="),
        ({"goal_rewards": [[1.0, 0.0]]}, "goal_rewards=.*one for each of 5 goals, each of 2 numbers"),
        ({"step_reward": [0.0, -0.1, 0.0]}, "each of 3 numbers, as step_reward"),
        ({"step_reward": [float("nan"), 0.0]}, "step_reward=nan"),
    ],
)
def test_invalid_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObjectivesMaze(**changes)


# Environments of mo-gymnasium


class VectorReward(Env):
    """Gives the reward (1, action) and terminates in the third frame."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)
    reward_space = spaces.Box(-np.inf, np.inf, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.frames = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.frames += 1
        return np.full(2, self.frames / 4, np.float32), np.array([1.0, action[0]]), self.frames == 3, False, {}


class ScalarReward(VectorReward):
    reward_space = None


register("VectorReward-v0", VectorReward)
register("ScalarReward-v0", ScalarReward)
ID = "mo-mountaincarcontinuous-v0"


@pytest.fixture
def installed() -> None:
    pytest.importorskip("mo_gymnasium")


@pytest.mark.usefixtures("installed")
def test_vectors_are_summed_over_the_frames_of_an_action_and_rest_at_zero() -> None:
    environment = MOGym("VectorReward-v0", [0.5, 0.5], action_repeat=2)
    assert environment.objectives == 2
    env = environment.make(2, seed=0)
    tensordict = env.reset()
    for expected in ([[2.0, 1.0], [2.0, -1.0]], [[1.0, 0.5], [1.0, -0.5]], [[0.0, 0.0], [0.0, 0.0]]):
        tensordict["action"] = torch.tensor([[0.5], [-0.5]])
        after = env.step(tensordict)["next"]
        assert after["objectives"].tolist() == expected
        assert after["reward"].flatten().tolist() == [sum(row) / 2 for row in expected]
        tensordict = after.clone()


@pytest.mark.usefixtures("installed")
def test_an_environment_of_mo_gymnasium_meets_torchrls_specs() -> None:
    env = MOGym(ID).make(2, seed=0)
    assert isinstance(env, WeightedBatch) and issubclass(MOGym, Objectives)
    check_env_specs(env)
    assert env.snapshot() is None  # as those of Gymnasium


@pytest.mark.usefixtures("installed")
def test_a_reward_that_is_one_number_and_weights_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"id=ScalarReward-v0: its reward is one number; must be a vector"):
        MOGym("ScalarReward-v0").make(1, seed=0)
    with pytest.raises(ValueError, match=r"id=mo-mountain\S+: weights=\[0.2, 0.3, 0.5\]: must be 2 numbers"):
        MOGym(ID, [0.2, 0.3, 0.5]).make(1, seed=0)


def test_without_mo_gymnasium_it_is_refused_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "dqs-lightning\[objectives\]"'):
        MOGym()
