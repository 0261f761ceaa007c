import math

import pytest
import torch
from torchrl.envs.utils import check_env_specs

from dqs_lightning.envs import Targets


def test_meets_torchrl_specs_and_is_truncated_at_the_horizon() -> None:
    env = Targets(horizon=7).make(3, seed=0)
    check_env_specs(env)
    steps = env.rollout(14, break_when_any_done=False)
    assert torch.equal(steps["next", "truncated"].squeeze(-1).nonzero()[:, 1].unique(), torch.tensor([6, 13]))
    assert not steps["next", "terminated"].any()


def test_the_reward_is_the_weighted_sum_over_the_targets() -> None:
    targets = Targets([[0.5, 0.0], [-0.5, 0.0]], weights=[2.0, 3.0], width=0.25)
    position = torch.tensor([[0.5, 0.0], [0.5, 0.25], [0.0, 0.0]], dtype=torch.float64)
    far = 3 * math.exp(-8)
    expected = [2 + far, 2 * math.exp(-0.5) + far * math.exp(-0.5), 5 * math.exp(-2)]
    torch.testing.assert_close(targets.reward(position).flatten(), torch.tensor(expected, dtype=torch.float64))


def test_moves_are_steps_times_the_action_within_the_box() -> None:
    env = Targets(start=[0.9, 0.0], start_noise=0.0, step=0.2).make(1, seed=0)
    start = env.reset()
    start["action"] = torch.tensor([[1.0, -0.5]])
    torch.testing.assert_close(env.step(start)["next", "observation"], torch.tensor([[1.0, -0.1]]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": []}, "targets=\\[\\]: must be one or more"),
        ({"targets": [[2.0, 0.0]]}, "targets=.*: must be lists of 2 numbers from -1 to 1"),
        ({"weights": [1.0, 2.0]}, "weights=.*: must be one finite number for each of 1 targets"),
        ({"start": [0.0]}, "start=.*: must be lists of 2 numbers"),
    ],
)
def test_bad_layouts_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Targets(**changes)
