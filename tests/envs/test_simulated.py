"""Tests of batched JAX simulations: rewards, ends and resets of episodes, with a simulation that is easy to predict."""

import pickle
import types
import warnings
from typing import Any

import pytest
import torch
from torchrl.envs.utils import check_env_specs, step_mdp

jax = pytest.importorskip("jax")

from flax import struct
from jax import numpy as jnp

from dqs_lightning.envs.base import Environment
from dqs_lightning.envs.jax_episodes import Episodes
from dqs_lightning.envs.simulated import Simulated, SimulatedBatch

END = 3.0
"""The position at which the episode of a `Walk` terminates."""


@struct.dataclass
class State:
    data: Any
    obs: Any
    reward: Any
    done: Any
    metrics: Any
    info: Any


class Walk:
    """A point on a line. The action is added to its position and is the reward; below -1 the simulation diverges."""

    action_size, observation_size = 1, 2

    def observe(self, position: Any, key: Any) -> Any:
        return jnp.stack([position, jax.random.uniform(key)])

    def reset(self, key: Any) -> State:
        position = 0.5 * jax.random.uniform(key)
        zero = jnp.zeros(())
        return State({"position": position}, self.observe(position, key), zero, zero, {}, {"key": key})

    def step(self, state: State, action: Any) -> State:
        position = state.data["position"] + action[0]
        position = jnp.where(position < -1, jnp.nan, position)
        _, key = jax.random.split(state.info["key"])
        return state.replace(
            data={"position": position},
            obs=self.observe(position, key),
            reward=action[0],
            done=(position >= END).astype(float),
            info={"key": key},
        )


class Parts(Walk):
    """The same simulation with an observation of two parts."""

    observation_size: Any = types.MappingProxyType({"privileged_state": (2,), "state": (2,)})

    def observe(self, position: Any, key: Any) -> Any:
        observed = super().observe(position, key)
        return {"state": observed, "privileged_state": -observed}


class _WalkEnvironment(Simulated):
    package = "jax"

    def __init__(self, repeat: int = 1, length: int | None = 10, simulation: Any = None) -> None:
        super().__init__("walk", repeat, length)
        self.simulation = simulation or Walk()

    def names(self) -> list[str]:
        return ["walk"]

    def load(self) -> tuple[Any, int]:
        return self.simulation, 4


def act(env: SimulatedBatch, now: Any, *actions: float) -> Any:
    """Steps with one action for each member, without a reset."""
    now["action"] = torch.tensor(actions).unsqueeze(-1)
    return env.step(now)["next"]


def test_meets_torchrl_specs_in_float32() -> None:
    env = _WalkEnvironment().make(3, seed=0)
    check_env_specs(env)
    step = env.rollout(3)
    assert step["observation"].dtype == step["next", "reward"].dtype == torch.float32
    assert step["observation"].shape == (3, 3, 2)


def test_the_control_period_is_that_of_the_simulation() -> None:
    simulation = Walk()
    assert _WalkEnvironment(simulation=simulation).interface().control_period_s is None
    simulation.dt = torch.tensor(0.04).item()  # with the rounding of float32
    found = _WalkEnvironment(repeat=2, simulation=simulation).interface()
    assert found.control_period_s == 0.08 and "jax" in found.modules


def test_a_repeated_action_sums_its_rewards_up_to_the_end_of_the_episode() -> None:
    env = _WalkEnvironment(repeat=4).make(2, seed=0)
    start = env.reset()
    position = start["observation"][:, 0].clone()
    found = act(env, start, 0.25, 1.0)
    assert found["reward"].squeeze().tolist() == [1.0, 3.0]  # the second member reaches the end in its third frame
    assert torch.allclose(found["observation"][:, 0], position + torch.tensor([1.0, 3.0]))
    assert found["terminated"].squeeze().tolist() == [False, True]
    assert not found["truncated"].any()


def test_the_time_limit_truncates_and_does_not_terminate_and_counts_frames() -> None:
    env = _WalkEnvironment(repeat=4, length=10).make(1, seed=0)
    now = env.reset()
    flags = []
    for _ in range(3):
        now = act(env, now, 0.0)
        flags.append((bool(now["terminated"]), bool(now["truncated"]), bool(now["done"])))
    assert flags == [(False, False, False), (False, False, False), (False, True, True)]


def test_an_end_at_the_time_limit_terminates() -> None:
    env = _WalkEnvironment(length=3).make(2, seed=0)
    now = env.reset()
    for _ in range(3):
        now = act(env, now, 0.5, 1.0)
    assert now["terminated"].squeeze().tolist() == [False, True]
    assert now["truncated"].squeeze().tolist() == [True, False]


def test_a_member_that_is_done_has_reward_zero_until_it_is_reset() -> None:
    env = _WalkEnvironment().make(2, seed=0)
    now = env.reset()
    for _ in range(3):
        now = act(env, now, 1.0, 0.0)
    ended = now["observation"][0].clone()
    now = act(env, now, 1.0, 0.5)
    assert torch.equal(now["observation"][0], ended) and now["reward"].squeeze().tolist() == [0.0, 0.5]
    assert now["done"].squeeze().tolist() == [True, False]


def test_a_reset_of_some_members_does_not_change_the_others_or_their_random_numbers() -> None:
    env, other = _WalkEnvironment().make(3, seed=5), _WalkEnvironment().make(3, seed=5)
    now, same = env.reset(), other.reset()
    for _ in range(2):
        now, same = act(env, now, 1.0, 0.1, 0.2), act(other, same, 1.0, 0.1, 0.2)
    now["_reset"] = torch.tensor([[True], [False], [False]])
    again = env.reset(now.clone())
    assert not torch.equal(again["observation"][0], now["observation"][0])
    assert torch.equal(again["observation"][1:], now["observation"][1:])
    later, same = act(env, again.exclude("_reset"), 0.0, 0.3, 0.4), act(other, same, 0.0, 0.3, 0.4)
    assert torch.equal(later["observation"][1:], same["observation"][1:])
    assert not torch.equal(later["observation"][0], same["observation"][0])


def test_member_i_with_a_seed_equals_the_first_member_with_seed_plus_i() -> None:
    env = _WalkEnvironment(length=2).make(3, seed=7)
    alone = _WalkEnvironment(length=2).make(1, seed=9)
    for _ in range(3):
        assert torch.equal(env.reset()["observation"][2], alone.reset()["observation"][0])


def test_observations_and_rewards_are_passed_on_without_a_copy() -> None:
    env = _WalkEnvironment().make(2, seed=0)
    found = act(env, env.reset(), 0.1, 0.2)
    members = env._current_state
    assert members is not None
    assert found["observation"].data_ptr() == members.obs.unsafe_buffer_pointer()
    assert found["reward"].data_ptr() == members.reward.unsafe_buffer_pointer()


def test_observations_are_not_overwritten_by_later_steps() -> None:
    env = _WalkEnvironment().make(2, seed=0)
    now = env.reset()
    seen = [now["observation"]]
    copies = [now["observation"].clone()]
    for _ in range(4):
        now["action"] = torch.full((2, 1), 0.9)
        stepped, now = env.step_and_maybe_reset(now)
        seen.append(stepped["next", "observation"])
        copies.append(stepped["next", "observation"].clone())
    assert all(torch.equal(one, copy) for one, copy in zip(seen, copies, strict=True))


def test_a_simulation_that_diverges_ends_as_terminated_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Environment, "_warned", False)
    environment = _WalkEnvironment()
    env = environment.make(2, seed=0)
    start = env.reset()
    before = start["observation"].clone()
    found = act(env, start, -1.0, 0.1)
    found = act(env, found, -1.0, 0.1)
    assert found["terminated"].squeeze().tolist() == [True, False] and not found["truncated"].any()
    assert found["reward"].squeeze().tolist() == pytest.approx([0.0, 0.1])
    assert found["observation"].isfinite().all() and found["observation"][0, 0] == before[0, 0] - 1
    now = step_mdp(env.step(found.clone().set("action", torch.zeros(2, 1))))
    with pytest.warns(RuntimeWarning, match="walk: a simulation diverged"):
        now = env.maybe_reset(now)
    assert environment.physics_errors == 1 and now["observation"].isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.reset()
    assert environment.physics_errors == 1


@pytest.mark.parametrize("repeat", [1, 3])
def test_a_snapshot_continues_bitwise_in_mid_episode_with_the_same_random_numbers(repeat: int) -> None:
    actions = torch.rand(12, 2, 1, generator=torch.Generator().manual_seed(0)) / repeat

    def play(env: SimulatedBatch, now: Any, given: torch.Tensor) -> torch.Tensor:
        rows = []
        for action in given:
            now["action"] = action
            stepped, now = env.step_and_maybe_reset(now)
            rows.append(torch.cat([stepped["next", "observation"], stepped["next", "reward"]], -1))
        return torch.stack(rows)

    env = _WalkEnvironment(repeat, 7).make(2, seed=1)
    now = env.reset()
    for action in actions[:4]:
        now["action"] = action
        now = env.step_and_maybe_reset(now)[1]
    snapshot = env.snapshot()
    assert all(leaf.dtype in (torch.float32, torch.int32, torch.bool) for leaf in snapshot["leaves"])
    other = _WalkEnvironment(repeat, 7).make(2, seed=77)
    other.restore(snapshot)
    resumed = other.reset()
    assert torch.equal(resumed["observation"], now["observation"])
    assert torch.equal(play(env, now, actions[4:]), play(other, resumed, actions[4:]))


def test_the_policy_receives_its_part_of_a_dict_observation() -> None:
    whole, parts = _WalkEnvironment().make(2, seed=0), _WalkEnvironment(simulation=Parts()).make(2, seed=0)
    now, same = whole.reset(), parts.reset()
    assert torch.equal(now["observation"], same["observation"])
    assert torch.equal(act(whole, now, 0.1, 0.2)["observation"], act(parts, same, 0.1, 0.2)["observation"])


def test_a_dict_observation_without_a_part_for_the_policy_is_refused() -> None:
    class Pixels(Walk):
        observation_size: Any = types.MappingProxyType({"pixels": (8, 8, 3)})

    with pytest.raises(ValueError, match="observation has parts pixels; must be numbers, or have a part state"):
        _WalkEnvironment(simulation=Pixels()).make(1, seed=0)


def test_only_the_first_reset_compiles(caplog: pytest.LogCaptureFixture) -> None:
    """Steps and a second environment compile nothing. The first reset does it, because its time limit is longer."""
    environment = _WalkEnvironment()
    now = environment.make(2, seed=0).reset()
    with jax.log_compiles():
        env = environment.make(2, seed=1)
        caplog.clear()
        now = act(env, env.reset(), 0.1, 0.2)
        for _ in range(3):
            now = act(env, now, 1.0, 0.1)
        now = env.maybe_reset(step_mdp(env.step(now.clone().set("action", torch.zeros(2, 1)))))
        act(env, now, 0.1, 0.1)
    compiled = [record.getMessage() for record in caplog.records if "Compiling jit(" in record.getMessage()]
    assert not [text for text in compiled if "jit(reset)" in text or "jit(step)" in text]


def test_a_factory_can_be_pickled_and_has_the_tasks_episode_length() -> None:
    environment = _WalkEnvironment(length=None)
    environment.make(1, seed=0)
    sent = pickle.loads(pickle.dumps(environment))
    env = sent.make(1, seed=0)
    now = env.reset()
    flags = []
    for _ in range(4):
        now = act(env, now, 0.0)
        flags.append(bool(now["truncated"]))
    assert flags == [False, False, False, True]


def test_an_array_that_all_members_share_is_taken_from_the_latest_step() -> None:
    episodes = Episodes(Walk(), 2, 1, 5)
    mask = jnp.array([True, False])
    mine, other = {"each": jnp.zeros(2), "all": jnp.zeros(7)}, {"each": jnp.ones(2), "all": jnp.ones(7)}
    merged = episodes.merge(mask, mine, other)
    assert merged["each"].tolist() == [0, 1] and merged["all"].tolist() == [1] * 7
