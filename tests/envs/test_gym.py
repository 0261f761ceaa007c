"""Tests of batched Gymnasium environments; `cases` has one environment for each unusual property."""

import sys
from pathlib import Path
from typing import Any

import cases
import gymnasium
import lightning as L
import mujoco
import numpy as np
import pytest
import torch
from gymnasium.spaces.utils import flatten
from helpers import small, small_agent, small_data, trainer
from tensordict import TensorDictBase
from torchrl.envs.utils import check_env_specs

from dqs_lightning.agents import PPO
from dqs_lightning.envs import EnvironmentFailure, Gym
from dqs_lightning.envs.gym import _compare_joint_types_with_numpy
from dqs_lightning.evaluation.returns import episode_returns

TRAIN = {
    "Float64": 3,
    "UInt8Vector": 3,
    "MatrixObservation": 12,
    "DiscreteObservation": 5,
    "DictObservation": 9,
    "NestedDict": 6,
    "TupleObservation": 3,
    "MatrixAction": 3,
    "AsymmetricAction": 3,
    "SaysItOnce": 3,
    "OwnFrameskip": 3,
}
REFUSED = {
    "PixelsBesideState": r"observation.pixels is an image \(3, 8, 8\) of uint8; must be numbers without images",
    "InfiniteAction": "its action has infinite bounds in 2 of 2 dimensions .* set action_low and action_high",
    "HalfInfiniteAction": "its action has infinite bounds in 1 of 2 dimensions .* set action_low and action_high",
    "DiscreteAction": "its action space is a Discrete; must be a Box of floats",
    "DictAction": "its action space is a Dict; must be a Box of floats",
}


def case(name: str, **arguments: Any) -> Gym:
    return Gym(f"Case{name}-v0", **arguments)


def plain(name: str, seed: int, actions: list[np.ndarray]) -> list[tuple[np.ndarray, float, bool, bool, np.ndarray]]:
    """Returns Gymnasium's own steps: flat observation, reward, terminated, truncated, flat observation before."""
    env = gymnasium.make(name)
    rows, last = [], flatten(env.observation_space, env.reset(seed=seed)[0])
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        final = flatten(env.observation_space, observation)
        following = flatten(env.observation_space, env.reset()[0]) if terminated or truncated else final
        rows.append((final, float(reward), terminated, truncated, last))
        last = following
    return rows


def test_every_case_is_tested() -> None:
    found = {cls.__name__ for cls in cases.Case.__subclasses__() if cls.__module__ == cases.__name__}
    assert found == {*TRAIN, *REFUSED}


@pytest.mark.parametrize("name", [*(f"Case{name}-v0" for name in TRAIN), "Pendulum-v1"])
def test_steps_equal_those_of_gymnasium(name: str) -> None:
    """Members are seeded with seed + index at their first reset only; the last observation of an episode is kept."""
    env = Gym(name).make(2, seed=7)
    check_env_specs(env)
    env.set_seed(7)
    space = env._envs[0].action_space
    steps, tensordict = [], env.reset()
    for unit in torch.rand(210, *env.action_spec.shape) * 2 - 1:
        tensordict["action"] = unit
        step, tensordict = env.step_and_maybe_reset(tensordict)
        steps.append(step)
    found = torch.stack(steps, 1)
    assert found["observation"].shape == (2, 210, TRAIN.get(name.removeprefix("Case").removesuffix("-v0"), 3))
    assert found["action"].shape == (2, 210, np.prod(space.shape))
    assert {found[key].dtype for key in ("observation", "action", ("next", "reward"))} == {torch.float32}
    assert found["next", "done"].sum() > 1
    for index, rows in enumerate(found.unbind(0)):
        middle, half = (space.high + space.low) / 2.0, (space.high - space.low) / 2.0
        actions = (middle + half * rows["action"].numpy().reshape(-1, *space.shape)).astype(space.dtype)
        expected = plain(name, 7 + index, list(actions.clip(space.low, space.high)))
        final, reward, terminated, truncated, before = (np.array(column) for column in zip(*expected, strict=True))
        np.testing.assert_allclose(rows["next", "observation"].numpy(), final, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(rows["observation"].numpy(), before, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(rows["next", "reward"].numpy()[:, 0], reward, rtol=1e-4, atol=1e-4)
        flags = rows["next"].select("terminated", "truncated", "done")
        assert flags["terminated"][:, 0].tolist() == terminated.tolist()
        assert flags["truncated"][:, 0].tolist() == truncated.tolist()
        assert torch.equal(flags["done"], flags["terminated"] | flags["truncated"])


def test_bytes_and_one_hot_observations_are_not_rescaled() -> None:
    assert case("UInt8Vector").make(2, 0).reset()["observation"].tolist() == [[1, 2, 250]] * 2
    steps = case("DiscreteObservation").make(1, 0).rollout(6)
    assert torch.equal(steps["observation"][0], torch.eye(5)[[0, 1, 2, 3, 4, 0]])


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_spaces_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=f"^id=Case{name}-v0: {REFUSED[name]}") as error:
        case(name).make(1, seed=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["InfiniteAction", "HalfInfiniteAction"])
def test_given_bounds_make_an_unbounded_action_usable(name: str) -> None:
    env = case(name, action_low=-2.0, action_high=[4.0, 0.5]).make(1, seed=0)
    tensordict = env.reset()
    tensordict["action"] = torch.ones(1, 2)
    assert env.step(tensordict)["next", "reward"].item() == -(4.0**2 + 0.5**2)


@pytest.mark.parametrize(("key", "bound"), [("action_low", float("nan")), ("action_high", [1.0, float("inf")])])
def test_given_bounds_must_be_finite(key: str, bound: object) -> None:
    with pytest.raises(ValueError, match=rf"^{key}=.*: must be finite$"):
        case("InfiniteAction", **{key: bound})


# Action repeat


@pytest.mark.parametrize("repeat", [1, 2, 3, 4, 7])
def test_action_repeat_stops_at_the_end_of_an_episode_and_sums_the_rewards(repeat: int) -> None:
    env = case("SaysItOnce", action_repeat=repeat).make(2, seed=0)
    steps = env.rollout(10)
    expected = [float(repeat)] * (5 // repeat) + [float(5 % repeat)] * (5 % repeat > 0)
    assert steps["next", "reward"].squeeze(-1).tolist() == [expected] * 2
    assert steps["next", "terminated"].squeeze(-1).tolist() == [[False] * (len(expected) - 1) + [True]] * 2


def along_the_velocity(observation: torch.Tensor) -> torch.Tensor:
    return torch.where(observation[:, 1:] < 0, -1.0, 1.0)


@pytest.mark.parametrize("repeat", [1, 2, 4, 8])
def test_the_return_of_mountain_car_is_the_one_computed_by_hand(repeat: int) -> None:
    expected = []
    for seed in (3, 4):
        raw = gymnasium.make("MountainCarContinuous-v0")
        (observation, _), total, over, frame = raw.reset(seed=seed), 0.0, False, 0
        while not over:
            if frame % repeat == 0:
                action = np.array([-1.0 if observation[1] < 0 else 1.0], np.float32)
            observation, reward, terminated, truncated, _ = raw.step(action)
            total, over, frame = total + reward, terminated or truncated, frame + 1
        assert total == pytest.approx(100 * terminated - 0.1 * frame)  # 100 at the goal, -0.1 a frame at full force
        expected.append(total)
    env = Gym("MountainCarContinuous-v0", repeat).make(2, seed=3)
    returns = episode_returns(env, along_the_velocity)
    np.testing.assert_allclose(returns.numpy(), expected, rtol=1e-4)
    assert returns.max() < 100  # the reward for reaching the goal once


@pytest.mark.parametrize(("kwargs", "expected"), [(None, 5), ({"frameskip": 2}, 2)])
def test_the_environments_own_frameskip_is_not_changed(kwargs: dict[str, Any] | None, expected: int) -> None:
    env = case("OwnFrameskip", action_repeat=2, kwargs=kwargs).make(1, seed=0)
    assert env._envs[0].unwrapped.frameskip == expected
    assert env.rollout(30).shape == (1, 10)


def test_further_arguments_are_passed_to_gymnasium_and_are_not_shared_between_environments() -> None:
    class Takes(cases.Case):
        def __init__(self, numbers: list[int]) -> None:
            numbers.append(1)
            self.numbers = numbers

    gymnasium.register("Takes-v0", entry_point=Takes)
    given = {"numbers": [5], "max_episode_steps": 3}
    env = Gym("Takes-v0", kwargs=given).make(2, seed=0)
    assert [member.unwrapped.numbers for member in env._envs] == [[5, 1], [5, 1]] and given["numbers"] == [5]
    steps = env.rollout(10)
    assert steps.shape == (2, 3) and steps["next", "truncated"][:, -1].all()


def test_an_environment_that_changes_its_action_gets_the_same_one_in_each_frame() -> None:
    class Changes(cases.Case):
        def step(self, action: np.ndarray) -> tuple[Any, ...]:
            result = super().step(action)
            action *= 0
            return result

    gymnasium.register("Changes-v0", entry_point=Changes)
    env = Gym("Changes-v0", action_repeat=3).make(1, seed=0)
    tensordict = env.reset()
    tensordict["action"] = torch.tensor([[1.0, 0.5]])
    assert env.step(tensordict)["next", "reward"].item() == -3.75
    assert tensordict["action"].tolist() == [[1.0, 0.5]]


# Resets and ends


def test_an_observation_array_that_the_environment_reuses_is_copied() -> None:
    class Reuses(cases.Case):
        held = np.zeros(3, np.float32)

        def observe(self) -> np.ndarray:
            self.held[:] = self.t
            return self.held

    gymnasium.register("Reuses-v0", entry_point=Reuses, disable_env_checker=True)
    steps = Gym("Reuses-v0").make(1, seed=0).rollout(30)
    assert steps["observation"][0, :, 0].tolist() == list(range(20))
    assert steps["next", "observation"][0, :, 0].tolist() == list(range(1, 21))


def test_only_the_members_given_in_the_mask_are_reset() -> None:
    env = Gym("Pendulum-v1").make(3, seed=0)
    tensordict = env.rand_step(env.reset())["next"].exclude("reward")
    tensordict["_reset"] = torch.tensor([[False], [True], [False]])
    after = env.reset(tensordict.clone())["observation"]
    assert torch.equal(after[[0, 2]], tensordict["observation"][[0, 2]])
    assert not torch.equal(after[1], tensordict["observation"][1])


def test_a_member_whose_episode_has_ended_is_not_stepped_until_it_is_reset() -> None:
    env = case("SaysItOnce", action_repeat=5).make(2, seed=0)
    first = env.rand_step(env.reset())["next"]
    again = env.rand_step(first.exclude("reward"))["next"]
    assert first["terminated"].all() and again["terminated"].all() and not again["reward"].any()
    assert torch.equal(first["observation"], again["observation"])
    assert not env.reset()["done"].any() and env.rand_step(env.reset())["next", "reward"].eq(5).all()


# Failures


class Faulty(cases.Case):
    """Fails in the given way at the third step of each episode."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def observe(self) -> np.ndarray:
        if self.t == 3 and self.fault == "shape":
            return np.zeros(1, np.float32)
        if self.t == 3 and self.fault == "text":
            return np.array(["1", "2", "3"])
        return super().observe()

    def step(self, action: np.ndarray) -> tuple[Any, ...]:
        observation, reward, *ends, info = super().step(action)
        if self.t == 3 and self.fault == "raises":
            raise ZeroDivisionError("division\nby zero")
        return observation, [reward, reward] if self.t == 3 and self.fault == "reward" else reward, *ends, info


gymnasium.register("Faulty-v0", entry_point=Faulty, disable_env_checker=True)


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("raises", "ZeroDivisionError: division by zero"),
        ("shape", r"ValueError: observation of shape .1,. and float32; must be numbers \(3,\)"),
        ("text", "ValueError: observation of shape .* must be numbers"),
        ("reward", "TypeError"),
    ],
)
def test_a_failing_step_names_the_environment_and_the_cause(fault: str, cause: str) -> None:
    env = Gym("Faulty-v0", kwargs={"fault": fault}).make(2, seed=0)
    env.rollout(2)
    env.reset()
    with pytest.raises(EnvironmentFailure, match=f"^Faulty-v0: environment 0 failed in step: {cause}"):
        env.rollout(5)


def test_a_failing_reset_names_the_environment() -> None:
    env = case("Float64").make(3, seed=0)
    env._envs[1].unwrapped.reset = None
    with pytest.raises(EnvironmentFailure, match="environment 1 failed in reset: TypeError"):
        env.reset()


class Closing(cases.Case):
    """Counts the environments that are closed; the second raises an error in its constructor or in `close`."""

    open_now: int
    made: int
    raises: str

    def __init__(self) -> None:
        type(self).made += 1
        self.number = type(self).made
        if self.raises == "construct" and self.number == 2:
            raise ModuleNotFoundError("No module named\n'Box2D'")
        type(self).open_now += 1

    def close(self) -> None:
        type(self).open_now -= 1
        if self.raises == "close" and self.number == 2:
            raise OSError("no display")


gymnasium.register("Closing-v0", entry_point=Closing)


@pytest.fixture
def closing() -> type[Closing]:
    Closing.open_now, Closing.made, Closing.raises = 0, 0, ""
    return Closing


def test_close_closes_all_members_once(closing: type[Closing]) -> None:
    env = Gym("Closing-v0").make(3, seed=0)
    assert closing.open_now == 3
    env.close()
    env.close(raise_if_closed=False)
    assert closing.open_now == 0


def test_close_closes_the_other_members_if_one_raises(closing: type[Closing]) -> None:
    closing.raises = "close"
    env = Gym("Closing-v0").make(3, seed=0)
    with pytest.raises(OSError, match="no display"):
        env.close()
    assert closing.open_now == 0


def test_if_one_environment_cannot_be_constructed_the_others_are_closed(closing: type[Closing]) -> None:
    closing.raises = "construct"
    with pytest.raises(ValueError, match=r"^id=Closing-v0: ModuleNotFoundError: No module named 'Box2D'$"):
        Gym("Closing-v0").make(3, seed=0)
    assert (closing.made, closing.open_now) == (2, 0)


def test_all_environments_are_closed_if_their_space_is_refused(
    closing: type[Closing], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "action_space", cases.DiscreteAction.action_space)
    with pytest.raises(ValueError, match="id=Closing-v0: its action space is a Discrete"):
        Gym("Closing-v0").make(2, seed=0)
    assert (closing.made, closing.open_now) == (2, 0)


def test_arguments_that_the_environment_does_not_take_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^id=Pendulum-v1: TypeError: .*keyword argument 'gravty'") as error:
        Gym("Pendulum-v1", kwargs={"gravty": 9.8}).make(1, seed=0)
    assert "\n" not in str(error.value)


# Ids


def test_unknown_id_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ValueError, match="did you mean Pendulum-v1"):
        Gym("Pendulumm-v1")


def test_the_module_of_an_id_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stranger_envs.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"^id=stranger_envs:Nowhere-v0: Nowhere-v0 is not registered .* --trust"):
        Gym("stranger_envs:Nowhere-v0")
    known = Gym("stranger_envs:Pendulum-v1")
    assert known.name == "Pendulum-v1" and known.make(1, seed=0).rollout(2).shape == (1, 2)
    assert "stranger_envs" not in sys.modules


# gymnasium-robotics


@pytest.mark.parametrize(("name", "observation", "action"), [("FetchReach-v4", 16, 4), ("FrankaKitchen-v1", 93, 9)])
def test_environments_of_gymnasium_robotics_run_with_this_version_of_mujoco(
    name: str, observation: int, action: int
) -> None:
    """They compare MuJoCo's joint types with NumPy integers; the observation includes the goal."""
    pytest.importorskip("gymnasium_robotics")
    env = Gym(f"gymnasium_robotics:{name}").make(2, seed=0)
    steps = env.rollout(3)
    assert steps["observation"].shape == (2, 3, observation) and steps["action"].shape == (2, 3, action)
    assert steps["next", "observation"].isfinite().all()


def test_joint_types_still_differ_from_one_another_and_from_other_values() -> None:
    _compare_joint_types_with_numpy()
    hinge = mujoco.mjtJoint.mjJNT_HINGE
    assert np.int32(3) in (hinge,) and hinge == np.int64(3) and hinge == 3 and hinge == mujoco.mjtJoint(3)
    assert hinge != mujoco.mjtJoint.mjJNT_SLIDE and np.int32(2) not in (hinge,) and hinge != "mjJNT_HINGE"


# Training


class Batches(L.Callback):
    def __init__(self) -> None:
        self.seen: list[TensorDictBase] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs, batch, batch_idx) -> None:
        self.seen.append(batch)


def test_ppo_learns_all_numbers_of_a_matrix(tmp_path: Path) -> None:
    data, batches = small_data(environment=case("MatrixAction"), total_frames=160, init_random_frames=80), Batches()
    agent = PPO(data.observation_dim, data.action_dim, rollout_steps=80, minibatch_size=16, epochs=1, **small())
    trainer(tmp_path, [batches]).fit(agent, data)
    seen = torch.cat(batches.seen)
    rows = seen["action"].reshape(-1, 2, 3)
    assert len(rows) == 160 and (rows[:, 0] != rows[:, 1]).all()
    # The reward depends on the action that the environment received.
    torch.testing.assert_close(seen["next", "reward"][:, 0], -seen["action"].square().sum(-1), rtol=1e-4, atol=1e-4)


def test_dqs_learns_from_a_dict(tmp_path: Path) -> None:
    data, batches = small_data(environment=case("DictObservation"), total_frames=160, init_random_frames=80), Batches()
    trainer(tmp_path, [batches]).fit(small_agent(data), data)
    observation = torch.cat(batches.seen)["observation"]
    assert observation.shape[1] == 9 and torch.equal(observation[:, 3:7].sum(-1), torch.ones(len(observation)))


class Drawn(gymnasium.Env):
    """Renders a picture twice as wide as high, whose left half has the brightness of the member's first action."""

    metadata = {"render_modes": ["human", "rgb_array"]}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Box(0, 200, (1,))

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode, self.value = render_mode, 0.0

    def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.value = float(action[0])
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def render(self) -> np.ndarray | None:
        picture = np.zeros((60, 120, 3), np.uint8)
        picture[:, :60] = round(self.value)
        return picture if self.render_mode == "rgb_array" else None


class Undrawable(Drawn):
    """Its metadata names a render mode that its constructor does not accept."""

    def __init__(self) -> None:
        super().__init__(None)


gymnasium.register("Drawn-v0", entry_point=Drawn)
gymnasium.register("Undrawable-v0", entry_point=Undrawable)


def test_an_environment_renders_in_the_requested_size() -> None:
    env = Gym("Drawn-v0").make(2, seed=0)
    env.step(env.reset().set("action", torch.tensor([[1.0], [0.0]])))
    for index, brightness in ((0, 200), (1, 100)):
        picture = env.render(index, 40, 40)
        assert picture.shape == (40, 40, 3) and picture.dtype == np.uint8
        assert not picture[:10].any() and not picture[30:].any()  # twice as wide as high, it fills 20 rows
        assert (picture[10:30, :20] == brightness).all() and not picture[:, 20:].any()


@pytest.mark.parametrize(("id", "kwargs"), [("Undrawable-v0", None), ("Drawn-v0", {"render_mode": None})])
def test_the_error_of_an_environment_that_cannot_render_states_what_is_missing(
    id: str, kwargs: dict[str, Any] | None
) -> None:
    env = Gym(id, kwargs=kwargs).make(1, seed=0)
    env.rand_step(env.reset())
    with pytest.raises(TypeError, match=rf"^{id} draws no RGB picture; its class must have rgb_array in metadata"):
        env.render()
