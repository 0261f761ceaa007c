"""`Environment.interface` describes what the environments do: order of the observation, bounds, and period."""

import importlib
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from dqs_lightning.envs import DMControl, Environment, Gym, Maze, PointMaze
from dqs_lightning.envs.interface import Interface, Part
from dqs_lightning.envs.transformed import transformed
from dqs_lightning.envs.transforms import CatFrames, SignTransform, TimeMaxPool, Transform
from dqs_lightning.sharing.facts import slices, task_facts


class Arm(gymnasium.Env[Any, Any]):
    """Observes parts of several kinds; its `dt` is 0.02 s, and its last action is kept."""

    observation_space = spaces.Dict(
        {
            "arm": spaces.Dict({"velocity": spaces.Box(-1, 1, (2,)), "angle": spaces.Box(-1, 1, (3,))}),
            "tool": spaces.Tuple([spaces.Discrete(4), spaces.Box(-1, 1, (1, 2))]),
        }
    )
    action_space = spaces.Box(np.array([-2, 0], np.float32), np.array([2, 5], np.float32))
    dt = 0.02
    last: np.ndarray | None = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        arm = {"velocity": np.full(2, 0.1, np.float32), "angle": np.full(3, 0.2, np.float32)}
        return {"arm": arm, "tool": (2, np.full((1, 2), 0.3, np.float32))}, {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        Arm.last = action
        return self.reset()[0], 0.0, False, False, {}


@pytest.fixture
def arm() -> Any:
    gymnasium.register("Arm-v0", Arm)
    yield
    del gymnasium.registry["Arm-v0"]


def by_name(environment: Environment, observation: torch.Tensor) -> dict[str, list[float]]:
    return {
        part["name"]: observation[part["start"] : part["stop"]].tolist()
        for part in slices(environment.interface(), len(observation))
    }


@pytest.mark.parametrize("task", [("walker", "walk"), ("reacher", "easy"), ("cartpole", "swingup")])
def test_parts_of_the_control_suite_are_those_of_its_observation(task: tuple[str, str]) -> None:
    control = DMControl(*task, action_repeat=4)
    suite = importlib.import_module("dm_control.suite")
    observation = control.make(1, seed=3).reset()["observation"][0]
    expected = suite.load(*task, {"random": 3}).reset().observation
    found = by_name(control, observation)
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], np.ravel(values), rtol=1e-6)
    assert control.interface().control_period_s == pytest.approx(4 * suite.load(*task).control_timestep())


def test_bounds_are_those_of_the_simulator() -> None:
    found = DMControl("quadruped", "walk").interface()
    spec = importlib.import_module("dm_control.suite").load("quadruped", "walk").action_spec()
    assert found.action_low == tuple(spec.minimum) and found.action_high == tuple(spec.maximum)
    assert max(found.action_high) == 1.1  # not all are [-1, 1]


def test_parts_of_a_nested_space_are_named(arm: None) -> None:
    gym = Gym("Arm-v0", action_repeat=3)
    observation = gym.make(1, seed=0).reset()["observation"][0]
    found = {name: [round(value, 3) for value in values] for name, values in by_name(gym, observation).items()}
    assert found == {
        "arm.angle": [0.2] * 3, "arm.velocity": [0.1] * 2, "tool.0": [0, 0, 1, 0], "tool.1": [0.3] * 2,
    }  # fmt: skip
    assert gym.interface().control_period_s == pytest.approx(0.06)


def test_the_mapping_gives_the_action_that_the_environment_receives(arm: None) -> None:
    gym = Gym("Arm-v0", action_high=[1.5, 5])
    facts = task_facts(gym, [], (11, 2))
    env, action = gym.make(1, seed=0), np.array([0.5, -0.25])
    env.step(env.reset().set("action", torch.tensor(action, dtype=torch.float32)[None]))
    values = {
        "action": action,
        "low": np.array(facts["environment_action_low"]),
        "high": np.array(facts["environment_action_high"]),
    }
    exec(facts["action_mapping"], values)
    np.testing.assert_allclose(Arm.last, values["environment_action"])
    assert facts["environment_action_high"] == [1.5, 5.0]


def test_an_environment_without_names_bounds_or_period_says_so() -> None:
    class Plain(Maze):
        def interface(self) -> Interface:
            return Environment.interface(self)

    facts = task_facts(Plain(), [], (2, 2))
    assert facts["observation"] == [{"name": "observation", "start": 0, "stop": 2}]
    assert facts["environment_action_low"] == [-1, -1] and facts["environment_action_high"] == [1, 1]
    assert facts["control_period_s"] is None and facts["versions"].keys() >= {"dqs-lightning", "torch"}
    assert Gym("MountainCarContinuous-v0").interface().control_period_s is None


def test_versions_are_those_of_the_environments_packages() -> None:
    control, hopper = (task_facts(env, [], sizes)["versions"] for env, sizes in (
        (DMControl("cartpole", "swingup"), (5, 1)), (Gym("Hopper-v5"), (11, 3)),
    ))  # fmt: skip
    assert {"dm_control", "mujoco"} <= control.keys() and "gymnasium" not in control
    assert {"gymnasium", "mujoco"} <= hopper.keys() and "dm_control" not in hopper


def test_frames_of_a_stack_are_named_oldest_first() -> None:
    facts = task_facts(DMControl("cartpole", "swingup"), [CatFrames(3), SignTransform()], (15, 1))
    assert [(part["name"], part["start"]) for part in facts["observation"]] == [
        ("position[t-2]", 0), ("velocity[t-2]", 3), ("position[t-1]", 5), ("velocity[t-1]", 8), ("position", 10),
        ("velocity", 13),
    ]  # fmt: skip
    (described,) = facts["observation_transforms"]  # the other one is of rewards
    assert described["class_path"].endswith(".CatFrames") and described["init_args"]["N"] == 3
    environment = transformed(DMControl("cartpole", "swingup"), [CatFrames(2), TimeMaxPool(2)])
    assert [part.name for part in environment.interface().observation][:2] == ["position[t-1]", "velocity[t-1]"]


def test_a_transform_that_changes_the_size_without_naming_it_leaves_the_parts_unnamed() -> None:
    class Wider(Transform):
        def make(self, in_keys: Any) -> Any:
            raise NotImplementedError

    facts = task_facts(DMControl("cartpole", "swingup"), [Wider()], (9, 1))
    assert facts["observation"] == [{"name": "observation", "start": 0, "stop": 9}]


def test_other_sizes_than_the_agents_are_refused() -> None:
    with pytest.raises(ValueError, match="its environment has 24 observations and 6 actions, its agent 5 and 1"):
        task_facts(DMControl("walker", "walk"), [], (5, 1))


def test_an_environment_that_cannot_be_made_is_unknown_with_its_reason() -> None:
    facts = task_facts(DMControl("lqr", "lqr_2_1"), [], (4, 1))
    assert facts["observation"] is None and facts["environment_action_low"] is None
    assert facts["unknown"].startswith("domain=lqr, task=lqr_2_1: its action has infinite bounds")


def test_a_point_maze_has_its_robots_period() -> None:
    pytest.importorskip("gymnasium_robotics")
    maze = PointMaze(action_repeat=5)
    assert maze.interface().observation == (Part("position", 2), Part("velocity", 2))
    assert maze.interface().control_period_s == pytest.approx(5 * maze.model().opt.timestep)
