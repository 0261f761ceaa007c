"""Tests of the batched dm_control environment."""

import os
import warnings

import numpy as np
import pytest
import torch
from jsonargparse import Namespace
from tensordict import TensorDictBase
from torchrl.envs.utils import check_env_specs

from dqs_lightning.cli.checks import build
from dqs_lightning.cli.errors import InputError
from dqs_lightning.envs import DMControl, Environment, dm_control
from dqs_lightning.envs.dm_control import DMControlBatch

TASKS = [
    ("walker", "walk"),
    ("cheetah", "run"),
    ("cartpole", "swingup"),
    ("finger", "turn_hard"),
    ("hopper", "hop"),
    ("quadruped", "walk"),
    ("reacher", "hard"),
]


def play(env: DMControlBatch, tensordict: TensorDictBase, actions: torch.Tensor) -> torch.Tensor:
    rows = []
    for action in actions:
        tensordict["action"] = action
        stepped, tensordict = env.step_and_maybe_reset(tensordict)
        rows.append(torch.cat([stepped["next", "observation"], stepped["next", "reward"]], -1))
    return torch.stack(rows)


def random_actions(env: DMControlBatch, steps: int) -> torch.Tensor:
    return torch.rand(steps, *env.action_spec.shape) * 2 - 1


@pytest.mark.parametrize(("domain", "task"), TASKS)
def test_meets_torchrl_specs_in_float32(domain: str, task: str) -> None:
    env = DMControl(domain, task).make(2, seed=0)
    check_env_specs(env)
    step = env.rollout(3)
    assert step["observation"].dtype == step["next", "reward"].dtype == step["action"].dtype == torch.float32
    assert env.action_spec.space.low.eq(-1).all() and env.action_spec.space.high.eq(1).all()


@pytest.mark.parametrize(("domain", "task"), TASKS)
def test_snapshot_continues_bitwise_in_mid_episode(domain: str, task: str) -> None:
    env = DMControl(domain, task).make(2, seed=3)
    # 13 actions before the end of the episode, so that the restored random streams are used as well.
    actions = random_actions(env, 510)
    env_td = env.reset()
    play(env, env_td, actions[:487])
    snapshot = env.snapshot()
    other = DMControl(domain, task).make(2, seed=77)
    other.restore(snapshot)
    resumed = other.reset()
    assert torch.equal(play(env, resumed.clone(), actions[487:]), play(other, resumed, actions[487:]))


def test_steps_equal_those_of_the_suite_and_rewards_are_summed_over_the_action_repeat() -> None:
    env = DMControl("walker", "walk", action_repeat=3).make(1, seed=5)
    actions = random_actions(env, 4)
    got = play(env, env.reset(), actions)
    raw = dm_control.suite.load("walker", "walk", task_kwargs={"random": 5})
    raw.reset()
    for action, row in zip(actions, got, strict=True):
        steps = [raw.step(action[0].numpy()) for _ in range(3)]
        expected = np.concatenate([np.ravel(v) for v in steps[-1].observation.values()])
        np.testing.assert_allclose(row[0, :-1].numpy(), expected, rtol=1e-6)
        assert row[0, -1].item() == pytest.approx(sum(step.reward for step in steps), rel=1e-6)


def test_members_have_different_seeds_and_are_independent() -> None:
    both = DMControl("walker", "walk").make(2, seed=10)
    second = DMControl("walker", "walk").make(1, seed=11)
    actions = random_actions(both, 20)
    together = play(both, both.reset(), actions)
    alone = play(second, second.reset(), actions[:, 1:])
    assert torch.equal(together[:, 1:], alone)
    assert not torch.equal(together[:, 0], together[:, 1])


def test_time_limit_truncates_and_does_not_terminate() -> None:
    env = DMControl("cartpole", "swingup", action_repeat=4).make(2, seed=0)
    steps = env.rollout(400, break_when_any_done=True)
    assert steps.shape[1] == 250
    assert steps["next", "truncated"][:, -1].all() and not steps["next", "truncated"][:, :-1].any()
    assert not steps["next", "terminated"].any()


def test_actions_are_scaled_to_the_bounds_of_the_task() -> None:
    env = DMControl("fish", "swim").make(1, seed=0)
    spec = dm_control.suite.load("fish", "swim").action_spec()
    assert env._low == pytest.approx(spec.minimum) and env._low + 2 * env._half == pytest.approx(spec.maximum)


@pytest.mark.parametrize(("task", "dimensions"), [("lqr_2_1", 1), ("lqr_6_2", 2)])
def test_actions_without_bounds_are_refused_unless_bounds_are_given(task: str, dimensions: int) -> None:
    message = rf"^domain=lqr, task={task}: its action has infinite bounds in {dimensions} of {dimensions} dimensions"
    with pytest.raises(ValueError, match=message + ".* set action_low and action_high$") as error:
        DMControl("lqr", task).make(1, seed=0)
    assert "\n" not in str(error.value)
    env = DMControl("lqr", task, 1, action_low=-2.0, action_high=[3.0] * dimensions).make(3, seed=0)
    tensordict = env.reset()
    tensordict["action"] = torch.tensor([[-1.0], [0.0], [1.0]]).expand(3, dimensions)
    step = env.step(tensordict)
    controls = [member.physics.control().tolist() for member in env._envs]
    assert controls == [[-2.0] * dimensions, [0.5] * dimensions, [3.0] * dimensions]
    steps = env.rollout(1_100)  # the task has no time limit
    for found in (step, steps):
        assert found["next", "observation"].isfinite().all() and found["next", "reward"].isfinite().all()
    assert not steps["next", "done"].any()


def test_given_bounds_narrow_those_of_a_task_and_must_be_finite() -> None:
    env = DMControl("walker", "walk", action_low=-0.5, action_high=7.0).make(1, seed=0)
    assert env._low.tolist() == [-0.5] * 6 and (env._low + 2 * env._half).tolist() == [1.0] * 6
    with pytest.raises(ValueError, match=r"^action_high=inf: must be finite$"):
        DMControl("lqr", "lqr_2_1", action_low=-1.0, action_high=float("inf"))


def test_a_simulation_that_diverges_ends_only_its_own_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Environment, "_warned", False)
    walker = DMControl("walker", "walk")
    env = walker.make(3, seed=0)
    before = env.rand_step(env.reset())["next"].exclude("reward")
    env._envs[1].physics.data.qvel[:] = np.nan
    with pytest.warns(RuntimeWarning, match=r"walker-walk: a simulation diverged.*environment 1, .*BADQPOS"):
        step = env.rand_step(before.clone())
    after = step["next"]
    assert env.physics_errors == 1
    assert after["terminated"].squeeze(-1).tolist() == [False, True, False] and not after["truncated"].any()
    assert after["reward"][1] == 0 and torch.equal(after["observation"][1], before["observation"][1])
    assert not torch.equal(after["observation"][0], before["observation"][0])
    # A new episode begins, and the next divergence is counted without a warning.
    env._envs[0].physics.data.qpos[:] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps = env.rollout(20, auto_reset=False, tensordict=env.maybe_reset(after.exclude("reward")))
    assert env.physics_errors == 2 and steps["next", "observation"].isfinite().all()
    assert env.rollout(20)["next", "terminated"].sum() == 0


@pytest.mark.skipif(os.environ["MUJOCO_GL"] != "disabled", reason="a renderer was chosen")
def test_a_task_with_camera_observations_needs_a_renderer() -> None:
    with pytest.raises(ValueError, match=r"^domain=quadruped, task=escape: needs a renderer: set MUJOCO_GL") as found:
        DMControl("quadruped", "escape").make(1, seed=0)
    assert "\n" not in str(found.value)


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(ValueError, match=r"domain=wlker: .*did you mean walker"):
        DMControl("wlker", "walk")
    with pytest.raises(ValueError, match=r"task=runn: must be one of run, stand, walk; did you mean run"):
        DMControl("walker", "runn")
    with pytest.raises(ValueError, match="action_repeat=0"):
        DMControl("walker", "walk", action_repeat=0)


def test_without_dm_control_it_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dm_control, "INSTALLED", False)
    node = Namespace(class_path="dqs_lightning.envs.DMControl", init_args=Namespace(domain="walker"))
    with pytest.raises(InputError) as refused:
        build("data.environment", node)
    assert str(refused.value) == (
        "data.environment.DMControl needs dm_control, which requires Python 3.11 or 3.12: "
        "its labmaze has no wheel for 3.13"
    )
