"""Tests of several tasks as one environment: padding, the one-hot, episodes of their own, snapshots, and workers."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs.utils import check_env_specs

from dqs_lightning.collection.data import OnlineData
from dqs_lightning.envs import DMControl, Environment, Gym, Maze, MultiTask
from dqs_lightning.envs.multi_task import MultiTaskBatch
from dqs_lightning.envs.transforms import CatFrames, ObservationNorm

PENDULUM = {"id": "Pendulum-v1", "action_repeat": 2}


def tasks() -> list[Environment]:
    """Hopper: 15 numbers, 4 actions; cartpole: 5 and 1."""
    return [DMControl("hopper", "stand"), DMControl("cartpole", "balance")]


def play(env: MultiTaskBatch, tensordict: TensorDict, actions: Tensor) -> Tensor:
    rows = []
    for action in actions:
        tensordict["action"] = action
        stepped, tensordict = env.step_and_maybe_reset(tensordict)
        rows.append(torch.cat([stepped["next", "observation"], stepped["next", "reward"]], -1))
    return torch.stack(rows)


@pytest.mark.parametrize("members", [1, 2, 5])
def test_observations_are_padded_and_end_with_the_one_hot(members: int) -> None:
    environment = MultiTask(tasks())
    assert environment.name == "hopper-stand+cartpole-balance" and environment.tasks == environment.name.split("+")
    assert environment.action_dims == [4, 1] and environment.action_repeat == 2
    env = environment.make(members, seed=3)
    check_env_specs(env)
    hoppers = (members + 1) // 2
    seen = env.rollout(3)["next", "observation"]
    task = torch.arange(members) >= hoppers
    assert torch.equal(seen[..., -2:], torch.stack([~task, task], -1).float().unsqueeze(1).expand(-1, 3, -1))
    assert not seen[hoppers:, :, 5:-2].any() and seen[:hoppers, :, :13].all()


def test_members_are_those_of_the_tasks_and_ignore_surplus_actions() -> None:
    environment = MultiTask(tasks())
    env, hopper, cartpole = environment.make(3, 7), tasks()[0].make(2, 7), tasks()[1].make(1, 9)
    actions = 2 * torch.rand(4, 3, 4) - 1
    got, changed = env.reset(), actions.clone()
    found = play(env, got.clone(), actions)
    assert torch.equal(found[:, :2, :15], play(hopper, hopper.reset(), actions[:, :2])[..., :15])
    alone = play(cartpole, cartpole.reset(), actions[:, 2:, :1])
    assert torch.equal(found[:, 2:, :5], alone[..., :5]) and torch.equal(found[:, 2:, -1], alone[..., -1])
    changed[:, 2, 1:] = 0.5
    other = environment.make(3, 7)
    assert torch.equal(found, play(other, other.reset(), changed))


def test_one_task_is_reset_while_the_other_goes_on() -> None:
    lengths = [Gym("Pendulum-v1", kwargs={"max_episode_steps": length}) for length in (3, 5)]
    env = MultiTask(lengths).make(2, 0)
    tensordict, done, starts = env.reset(), [], []
    for _ in range(15):
        tensordict["action"] = torch.zeros(2, 1)
        stepped, tensordict = env.step_and_maybe_reset(tensordict)
        done.append(stepped["next", "done"].flatten().tolist())
        starts.append((stepped["next", "observation"] != tensordict["observation"]).any(-1).tolist())
    assert np.argwhere(np.array(done)[:, 0]).flatten().tolist() == [2, 5, 8, 11, 14]
    assert np.argwhere(np.array(done)[:, 1]).flatten().tolist() == [4, 9, 14]
    assert starts == done


def test_a_snapshot_continues_in_mid_episode_and_is_none_where_a_task_has_none() -> None:
    environment = MultiTask(tasks())
    env, other = environment.make(4, 0), environment.make(4, 50)
    actions = 2 * torch.rand(20, 4, 4) - 1
    play(env, env.reset(), actions[:12])
    other.restore(env.snapshot())
    resumed = other.reset()
    assert torch.equal(play(env, resumed.clone(), actions[12:]), play(other, resumed, actions[12:]))
    assert MultiTask([Gym(**PENDULUM), tasks()[1]]).make(2, 0).snapshot() is None


def test_seeds_decide_the_episodes() -> None:
    env, other = MultiTask(tasks()).make(2, 1), MultiTask(tasks()).make(2, 4)
    first = other.reset()["observation"]
    assert not torch.equal(env.reset()["observation"], first)
    env.set_seed(4)
    again = env.reset()["observation"]
    assert torch.equal(again[:, -2:], first[:, -2:]) and env.set_seed(4) != 4


@pytest.fixture
def in_workers() -> Iterator[OnlineData]:
    data = OnlineData(MultiTask(tasks()), num_envs=4, workers=2)
    yield data


def test_each_worker_has_members_of_each_task(in_workers: OnlineData) -> None:
    env = in_workers.training_environment(seed=0)
    try:
        assert env.reset()["observation"][:, -2:].tolist() == [[1, 0], [0, 1]] * 2
        assert env.rollout(2)["next", "reward"].shape == (4, 2, 1)
        assert env.snapshot() is not None
    finally:
        env.close()


def test_transforms_apply_to_each_task_before_the_one_hot() -> None:
    data = OnlineData(MultiTask(tasks()), num_envs=2, transforms=[CatFrames(2), ObservationNorm(scale=3.0)])
    env = data.make_environment(2, 0)
    plain = MultiTask(tasks()).make(2, 0).reset()["observation"]
    seen = env.reset()["observation"]
    assert data.observation_dim == 32 and data.action_dims == [4, 1] and torch.equal(seen[:, -2:], torch.eye(2))
    assert torch.allclose(seen[0, 15:30], 3 * plain[0, :15])
    env.close()


def test_diverged_simulations_of_all_tasks_are_counted() -> None:
    environment = MultiTask([*tasks(), Gym(**PENDULUM)])
    assert environment.physics_errors == 0
    environment.environments[0].physics_errors = 2
    with pytest.warns(RuntimeWarning, match="hopper-stand"):
        Environment._warned = False
        environment.count_diverged(3)  # of a worker, whose task is not known
    assert environment.physics_errors == 5
    assert MultiTask([Gym(**PENDULUM), Gym(**PENDULUM)]).physics_errors is None


def test_names_of_equal_tasks_differ_and_a_label_replaces_them() -> None:
    two = MultiTask([Gym(**PENDULUM), Gym(**PENDULUM)], label="pendulums")
    assert two.tasks == ["Pendulum-v1", "Pendulum-v1-2"] and two.name == "pendulums"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"environments": tasks()[:1]}, r"environments=\['hopper-stand'\]: must be two or more"),
        ({"environments": [*tasks(), DMControl(action_repeat=4)]}, "action_repeat must be the same, not 2, 2, 4"),
        ({"environments": tasks(), "label": "a/b"}, "label=a/b: must be a name without slashes"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiTask(**arguments)


def test_numbers_of_members_that_do_not_fit_and_hindsight_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_envs=3: must be a multiple of 2, one environment for each task$"):
        OnlineData(MultiTask(tasks()), num_envs=3)
    with pytest.raises(ValueError, match="one environment for each task for each of workers=2"):
        OnlineData(MultiTask(tasks()), num_envs=2, workers=2)
    with pytest.raises(ValueError, match=r"MultiTask \(.*\) is no goal environment"):
        MultiTask([Maze(), Maze()]).hindsight_goals()
