"""Tests of the mixture navigation environment and of the discrepancy between samples of end positions."""

import math

import pytest
import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal
from torchrl.envs.utils import check_env_specs

from dqs_lightning.envs import MixtureNavigation
from dqs_lightning.envs.mixture import MixtureBatch, mmd
from dqs_lightning.evaluation.goal_coverage import roll_out
from dqs_lightning.registry import describe


def play(env: MixtureBatch, tensordict: TensorDictBase, actions: Tensor) -> Tensor:
    """Returns observations and rewards [T, n, 3]."""
    rows = []
    for action in actions:
        tensordict["action"] = action
        stepped, tensordict = env.step_and_maybe_reset(tensordict)
        rows.append(torch.cat([stepped["next", "observation"], stepped["next", "reward"]], -1))
    return torch.stack(rows)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("start", ["center", "uniform"])
def test_meets_torchrl_specs(start: str) -> None:
    check_env_specs(MixtureNavigation(start=start).make(3, seed=0))


def test_reward_is_the_mixture_s_log_density_at_the_new_position() -> None:
    mixture = MixtureNavigation(reward_scale=0.1, start="uniform", step=5.0)
    env = mixture.make(50, seed=0)
    scales = torch.nn.functional.softplus(torch.ones(2, dtype=torch.float64))
    distribution = MixtureSameFamily(
        Categorical(torch.ones(40)),
        MultivariateNormal(torch.tensor(mixture.goals).double(), scale_tril=torch.diag(scales).expand(40, 2, 2)),
    )
    steps = env.rollout(20)
    position = steps["next", "position"]
    torch.testing.assert_close(
        steps["next", "reward"].squeeze(-1).double(),
        0.1 * distribution.log_prob(position.double()),
        rtol=1e-4,
        atol=1e-5,
    )
    torch.testing.assert_close(steps["next", "observation"] * 50, position)
    peak = mixture.log_density(torch.tensor(mixture.goals, dtype=torch.float64)).max()
    assert peak.item() == pytest.approx(-5.0, abs=1.0)


def test_only_the_direction_of_an_action_matters_and_a_zero_action_does_not_move() -> None:
    env = MixtureNavigation(start="center", step=2.0).make(5, seed=0)
    tensordict = env.reset()
    assert tensordict["position"].eq(0).all()
    tensordict["action"] = torch.tensor([[1.0, 0.0], [1e-4, 0.0], [-1.0, 1.0], [0.3, -0.4], [0.0, 0.0]])
    position = env.step(tensordict)["next", "position"]
    half = math.sqrt(2)
    expected = torch.tensor([[2.0, 0.0], [2.0, 0.0], [-half, half], [1.2, -1.6], [0.0, 0.0]])
    torch.testing.assert_close(position, expected)


def test_positions_stay_in_the_box_and_episodes_are_truncated_but_never_terminate() -> None:
    env = MixtureNavigation(start="center", horizon=70, step=1.5).make(4, seed=0)
    tensordict = env.reset()
    tensordict["action"] = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -0.1]])
    action = tensordict["action"].clone()
    for step in range(70):
        tensordict["action"] = action
        following = env.step(tensordict)["next"]
        assert following["position"].abs().max() <= 50 and not following["terminated"].any()
        assert following["truncated"].all() == following["done"].any() == (step == 69)
        tensordict = following.clone()
    assert following["position"][:3].abs().eq(50).all() and following["position"][3, 0] == 50


def test_every_mode_can_be_reached_from_the_center() -> None:
    mixture = MixtureNavigation(start="center", means_seed=3)
    goals = torch.tensor(mixture.goals)
    assert goals.abs().max() <= 40 and len(mixture.goals) == 40
    env = mixture.make(40, seed=0)
    tensordict = env.reset()
    for _ in range(60):
        away = goals - tensordict["position"]
        tensordict["action"] = torch.where(away.norm(dim=-1, keepdim=True) < 1, 0.0, away / 100)
        tensordict = env.step(tensordict)["next"].clone()
    reached = torch.cdist(goals, tensordict["position"]).diagonal()
    assert (reached < 1).all()
    assert (tensordict["goal"] >= 0).all() and tensordict["goal"].unique().numel() > 35
    assert not torch.equal(goals, torch.tensor(MixtureNavigation(means_seed=4).goals))


def test_goal_radius_holds_99_percent_of_a_mode() -> None:
    mixture = MixtureNavigation(num_modes=1)
    within = mixture.goal_of(mixture.samples(20_000, generator(0))) == 0
    assert within.float().mean().item() == pytest.approx(1 - math.exp(-4.5), abs=0.003)


def test_each_member_is_determined_by_its_seed_alone() -> None:
    mixture = MixtureNavigation(start="uniform", horizon=7)
    actions = torch.rand(20, 2, 2) * 2 - 1
    env, again, second = mixture.make(2, seed=10), mixture.make(2, seed=10), mixture.make(1, seed=11)
    both = play(env, env.reset(), actions)
    assert torch.equal(both, play(again, again.reset(), actions))
    torch.testing.assert_close(both[:, 1:], play(second, second.reset(), actions[:, 1:]))
    assert not torch.equal(both[:, 0], both[:, 1])
    starts = mixture.make(1000, seed=0).reset()["position"]
    assert starts.abs().max() <= 50 and starts.std().item() == pytest.approx(100 / math.sqrt(12), rel=0.05)


def test_snapshot_continues_bitwise_in_mid_episode() -> None:
    mixture = MixtureNavigation(start="uniform", horizon=10)
    env, other = mixture.make(3, seed=1), mixture.make(3, seed=77)
    tensordict = env.reset()
    actions = torch.rand(40, 3, 2) * 2 - 1  # several episodes, so that the restored random streams are used as well
    for action in actions[:14]:
        tensordict["action"] = action
        tensordict = env.step_and_maybe_reset(tensordict)[1]
    other.restore(env.snapshot())
    assert torch.equal(play(env, tensordict, actions[14:]), play(other, other.reset(), actions[14:]))


def brute_force(x: Tensor, y: Tensor, bandwidths: list[float]) -> float:
    def kernel(a: Tensor, b: Tensor) -> float:
        return sum(math.exp(-sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / (2 * h * h)) for h in bandwidths)

    def within(rows: list[list[float]]) -> float:
        pairs = [kernel(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
        return sum(pairs) / len(pairs)

    xs, ys = x.tolist(), y.tolist()
    return within(xs) + within(ys) - 2 * sum(kernel(a, b) for a in xs for b in ys) / (len(xs) * len(ys))


def test_discrepancy_equals_the_double_sum_and_is_symmetric() -> None:
    x, y = torch.randn(31, 2) * 5, torch.randn(43, 2) * 5 + 1
    found = mmd(x, y, [0.5, 3.0])
    assert found == pytest.approx(brute_force(x, y, [0.5, 3.0]), rel=1e-9)
    assert found == pytest.approx(mmd(y, x, [0.5, 3.0]), rel=1e-12)


def test_discrepancy_has_zero_mean_for_equal_distributions_and_increases_with_a_shift() -> None:
    mixture = MixtureNavigation()
    draws = [(mixture.samples(200, generator(2 * i)), mixture.samples(200, generator(2 * i + 1))) for i in range(40)]
    equal = torch.tensor([mmd(x, y) for x, y in draws])
    error = equal.std() / math.sqrt(len(draws))
    assert equal.mean().abs() < 4 * error and equal.min() < 0
    x, y = mixture.samples(1000, generator(0)), mixture.samples(1000, generator(1))
    shifted = [mmd(x, y + torch.tensor([shift, 0.0])) for shift in (0.0, 2.0, 4.0, 8.0, 16.0)]
    assert abs(shifted[0]) < 5 * equal.std() / 5 < shifted[1]  # its standard deviation falls as 1 / n
    assert shifted == sorted(shifted)


def test_random_walks_end_far_from_the_mixture() -> None:
    mixture = MixtureNavigation()
    found = roll_out(mixture.make(300, seed=0), None)
    assert mmd(found.position[-1], mixture.samples(300, generator(0))) > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": "corner"}, "start=corner: must be one of uniform, center"),
        ({"num_modes": 0}, "num_modes=0"),
        ({"horizon": 0}, "horizon=0"),
        ({"step": 0.0}, "step=0.0"),
        ({"reward_scale": math.inf}, "reward_scale=inf"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixtureNavigation(**arguments)


def test_bad_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="x has 1 samples"):
        mmd(torch.zeros(1, 2), torch.zeros(5, 2))
    with pytest.raises(ValueError, match="bandwidths"):
        mmd(torch.zeros(5, 2), torch.zeros(5, 2), [1.0, 0.0])


def test_its_description_holds_its_arguments() -> None:
    arguments = dict(num_modes=3, means_seed=2, start="uniform", reward_scale=0.5, step=2.0, horizon=9)
    assert describe(MixtureNavigation(**arguments))["init_args"] == arguments
