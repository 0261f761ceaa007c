"""Gymnasium environments keep the same contract."""

import gymnasium
import numpy as np
import pytest
import torch
from torchrl.envs.utils import check_env_specs

from dqs_lightning.envs import Gym


def test_meets_the_contract() -> None:
    env = Gym("Pendulum-v1").make(2, seed=0)
    check_env_specs(env)
    steps = env.rollout(5)
    assert steps["observation"].shape == (2, 5, 3) and steps["observation"].dtype == torch.float32
    assert steps["next", "reward"].dtype == torch.float32
    assert not torch.equal(steps["observation"][0], steps["observation"][1])


def test_action_one_is_the_environment_s_largest_and_repeats_sum_rewards() -> None:
    env = Gym("Pendulum-v1", action_repeat=2).make(1, seed=4)
    raw = gymnasium.make("Pendulum-v1")
    observation, _ = raw.reset(seed=4)
    first = env.reset()
    state = torch.as_tensor(observation)
    # TorchRL draws the reset's own seed from the given one, so the raw copy is set to the same state.
    angle = torch.atan2(first["observation"][0, 1], first["observation"][0, 0])
    raw.unwrapped.state = np.array([angle.item(), first["observation"][0, 2].item()])
    first["action"] = torch.ones(1, 1)
    after = env.step(first)["next"]
    rewards = []
    for _ in range(2):
        state, reward, *_ = raw.step(np.array([2.0], np.float32))
        rewards.append(reward)
    np.testing.assert_allclose(after["observation"][0].numpy(), state, atol=1e-5)
    assert after["reward"].item() == pytest.approx(sum(rewards), rel=1e-4)


def test_unknown_id_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ValueError, match="did you mean Pendulum-v1"):
        Gym("Pendulumm-v1")
