"""Tests of the point maze: gymnasium-robotics' dynamics with the interface of `Navigation`."""

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from jsonargparse import Namespace
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs.utils import check_env_specs

from dqs_lightning.cli.checks import build
from dqs_lightning.cli.errors import InputError
from dqs_lightning.envs import PointMaze
from dqs_lightning.envs.point_maze import TWO_GOALS, PointMazeBatch
from dqs_lightning.evaluation.goal_coverage import path_words
from dqs_lightning.registry import describe

installed = pytest.mark.skipif(
    importlib.util.find_spec("gymnasium_robotics") is None, reason="gymnasium-robotics is not installed"
)
OBLONG = ("1111111", "1g000r1", "1011101", "1000001", "1111111")


def raw_maze(maze: PointMaze) -> Any:
    """Makes gymnasium-robotics' own environment of the same map."""
    import gymnasium_robotics

    gymnasium.register_envs(gymnasium_robotics)
    cells = [[int(cell) if cell in "01" else cell for cell in row] for row in maze.maze_map]
    env = gymnasium.make("PointMaze_UMaze-v3", maze_map=cells, continuing_task=False, max_episode_steps=100_000)
    env.reset(seed=0)
    Path(env.unwrapped.tmp_xml_file_path).unlink()
    return env


def put(env: PointMazeBatch, index: int, position: tuple[float, float], velocity: tuple[float, float]) -> None:
    env._balls[index].qpos[:], env._balls[index].qvel[:] = position, velocity


def acted(env: PointMazeBatch, tensordict: TensorDictBase, action: Tensor) -> TensorDictBase:
    tensordict["action"] = action
    return env.step(tensordict)["next"]


def play(env: PointMazeBatch, tensordict: TensorDictBase, actions: Tensor) -> Tensor:
    """Returns observations, rewards and goals, [T, n, 6]."""
    rows = []
    for action in actions:
        tensordict["action"] = action
        stepped, tensordict = env.step_and_maybe_reset(tensordict)
        following = stepped["next"]
        rows.append(torch.cat([following["observation"], following["reward"], following["goal"]], -1))
    return torch.stack(rows)


@installed
@pytest.mark.parametrize("maze_map", [TWO_GOALS, OBLONG])
def test_meets_torchrl_specs(maze_map: tuple[str, ...]) -> None:
    check_env_specs(PointMaze(maze_map).make(2, seed=0))


@installed
def test_dynamics_are_bitwise_those_of_gymnasium_robotics() -> None:
    maze = PointMaze(horizon=100_000, action_repeat=7)
    env, raw = maze.make(1, seed=3), raw_maze(maze)
    point, ball = raw.unwrapped.point_env, env._balls[0]
    unit = np.array([4.5, 4.5, 5.0, 5.0])
    contacts, fastest = 0, 0.0
    for _ in range(4):
        tensordict, frames = env.reset(), 0
        point.init_qpos[:] = ball.qpos
        point.reset()
        while not tensordict["done"].any():
            action = torch.rand(1, 2) * 3 - 1.5
            tensordict = acted(env, tensordict, action)
            for _ in range(env._frames[0] - frames):
                assert not np.any(np.linalg.norm(point.data.qpos - maze.goals, axis=-1) <= 0.45)
                raw_step, *_ = raw.step(action[0].numpy())
                contacts += point.data.ncon > 1  # there is always one contact with the ground
            frames = env._frames[0]
            expected = raw_step["observation"]
            assert np.array_equal(np.concatenate([ball.qpos, ball.qvel]), expected)
            np.testing.assert_array_equal(tensordict["observation"][0].numpy(), np.float32(expected / unit))
            fastest = max(fastest, abs(expected[2:]).max())
        assert tensordict["terminated"].all() and tensordict["reward"].item() == 1
        assert np.any(np.linalg.norm(point.data.qpos - maze.goals, axis=-1) <= 0.45)
    assert contacts > 50 and fastest > 5  # walls and the velocity limit were reached


@installed
def test_arrival_agrees_with_gymnasium_robotics() -> None:
    maze = PointMaze(OBLONG, action_repeat=1)
    env, raw = maze.make(1, seed=0), raw_maze(maze)
    tensordict = env.reset()
    raw.unwrapped.goal = np.array(maze.goals[0])
    start = (maze.goals[0][0] + 1.0, maze.goals[0][1])
    put(env, 0, start, (-2.0, 0.0))
    raw.unwrapped.point_env.set_state(np.array(start), np.array([-2.0, 0.0]))
    for frame in range(1, 30):
        tensordict = acted(env, tensordict, torch.zeros(1, 2))
        _, reward, terminated, *_ = raw.step(np.zeros(2, np.float32))
        assert tensordict["terminated"].item() == terminated == (frame == 29)  # 0.55 cells at just below 2 cells/s
        assert tensordict["reward"].item() == reward == terminated


@installed
@pytest.mark.parametrize("maze_map", [TWO_GOALS, OBLONG])
def test_positions_are_in_gymnasium_robotics_coordinates(maze_map: tuple[str, ...]) -> None:
    maze = PointMaze(maze_map)
    raw = raw_maze(maze).unwrapped
    at = {kind: [] for kind in "01rg"}
    for i, row in enumerate(maze_map):
        for j, cell in enumerate(row):
            at[cell].append(tuple(raw.maze.cell_rowcol_to_xy((i, j)).tolist()))
    assert maze.goals == at["g"] and [maze.start] == at["r"]
    assert [((low + high) / 2, (bottom + top) / 2) for low, high, bottom, top in maze.blocks] == at["1"]
    geoms = [raw.model.geom(index) for index in range(raw.model.ngeom)]
    boxes = [geom for geom in geoms if geom.name.startswith("block")]
    sides = [(x - a, x + a, y - b, y + b) for (x, y, _), (a, b, _) in ((box.pos, box.size) for box in boxes)]
    assert sorted(sides) == sorted(maze.blocks)
    edges = zip(*sides, strict=True)
    assert maze.extent == tuple(end(edge) for end, edge in zip((min, max, min, max), edges, strict=True))


@installed
def test_each_island_of_wall_has_one_obstacle_and_the_outer_wall_none() -> None:
    maze = PointMaze()
    assert maze.obstacles == [(-2.0, 2.0), (-2.0, -1.0)]
    diagonal = PointMaze(("111111", "1r00g1", "101001", "100101", "100001", "111111"))
    assert len(diagonal.obstacles) == 1  # nothing gets through where corners touch
    assert PointMaze(OBLONG).obstacles == [(-1.0, 0.0)]
    assert PointMaze(("11111", "1r1g1", "10001", "11111")).obstacles == []
    above = [maze.start, (0, 3), *[maze.goals[0]] * 2]
    below = [maze.start, (0, 1), (-3, 1), maze.goals[0]]
    words = path_words(torch.tensor([above, below], dtype=torch.float64).transpose(0, 1), maze.obstacles)
    assert words[0] != words[1]


@installed
@pytest.mark.parametrize("goal", [0, 1])
def test_any_goal_gives_reward_one_and_ends_the_episode_within_the_action_repeat(goal: int) -> None:
    maze = PointMaze(action_repeat=30)
    env = maze.make(3, seed=0)
    tensordict = env.reset()
    (x, y), side = maze.goals[goal], 1 if goal else -1
    put(env, 0, (x, y + side * 0.7), (0.0, -side * 5.0))  # it would be out of reach again after 30 frames
    put(env, 1, (x, y + side * 0.46), (0.0, 0.0))
    following = acted(env, tensordict, torch.zeros(3, 2))
    assert following["goal"].flatten().tolist() == [goal, -1, -1]
    assert following["reward"].flatten().tolist() == [1, 0, 0]
    assert following["terminated"].flatten().tolist() == following["done"].flatten().tolist() == [True, False, False]
    assert not following["truncated"].any()
    assert env._frames[0] < 10 and env._frames[1:] == [30, 30]


@installed
def test_the_horizon_is_in_frames_and_truncates() -> None:
    env = PointMaze(horizon=25).make(2, seed=0)
    steps = env.rollout(9)
    assert steps.shape[1] == 3 and env._frames == [25, 25]
    assert steps["next", "truncated"][:, :, 0].tolist() == [[False, False, True]] * 2
    assert not steps["next", "terminated"].any()
    tensordict = env.reset()
    env._frames[0] = 24
    put(env, 0, env.maze.goals[0], (0.0, 0.0))
    following = acted(env, tensordict, torch.zeros(2, 2))  # an arrival in the last frame terminates instead
    assert following["terminated"][0].item() and not following["truncated"][0].item()


@installed
def test_each_member_is_determined_by_its_seed_alone() -> None:
    maze = PointMaze(horizon=60)
    actions = torch.rand(20, 2, 2) * 2 - 1
    env, again, second = maze.make(2, seed=10), maze.make(2, seed=10), maze.make(1, seed=11)
    both = play(env, env.reset(), actions)
    assert torch.equal(both, play(again, again.reset(), actions))
    assert torch.equal(both[:, 1:], play(second, second.reset(), actions[:, 1:]))
    assert not torch.equal(both[0, 0], both[0, 1])
    starts = maze.make(300, seed=0).reset()["position"]
    assert 0.24 < starts.abs().max() <= 0.25 and starts.mean(0).abs().max() < 0.05


@installed
def test_snapshot_continues_bitwise_in_mid_episode() -> None:
    maze = PointMaze(horizon=300, action_repeat=7)
    env, other = maze.make(4, seed=1), maze.make(4, seed=77)
    tensordict = env.reset()
    actions = torch.rand(140, 4, 2) * 2 - 1  # several episodes, so that the restored random streams are used as well
    for action in actions[:60]:
        tensordict["action"] = action
        tensordict = env.step_and_maybe_reset(tensordict)[1]
    other.restore(env.snapshot())
    resumed = other.reset()
    assert torch.equal(resumed["observation"], tensordict["observation"])
    expected = play(env, tensordict, actions[60:])
    assert torch.equal(expected, play(other, resumed, actions[60:]))
    assert expected[..., 4].sum() > 0  # goals were reached


@installed
def test_the_temporary_model_file_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    PointMaze().make(2, seed=0)
    assert not list(tmp_path.iterdir())


@installed
def test_its_description_holds_its_arguments() -> None:
    arguments = dict(maze_map=list(OBLONG), horizon=50, action_repeat=5, label="oblong")
    assert describe(PointMaze(**arguments))["init_args"] == arguments


def test_without_gymnasium_robotics_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    node = Namespace(class_path="dqs_lightning.envs.PointMaze", init_args=Namespace(horizon=100))
    with pytest.raises(InputError) as refused:
        build("data.environment", node)
    assert str(refused.value) == (
        'data.environment.PointMaze needs gymnasium-robotics: pip install "dqs-lightning[robotics]"'
    )


@pytest.mark.parametrize(
    ("maze_map", "message"),
    [
        (["111", "1r1"], "3 or more rows"),
        (["1111", "1rg1", "111"], "all equally long"),
        (["1111", "1rx1", "1g11", "1111"], "maze_map=1111/1rx1/1g11/1111: 'x' is none of 1 wall, 0 free"),
        (["1111", "1gg1", "1111"], "exactly one r"),
        (["11111", "1rgr1", "11111"], "exactly one r"),
        (["1111", "1r01", "1111"], "one or more g"),
        (["1111", "1rg0", "1111"], "border of walls"),
        (["1101", "1rg1", "1111"], "border of walls"),
    ],
)
def test_bad_maps_are_refused(maze_map: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PointMaze(maze_map)


@pytest.mark.parametrize("name", ["horizon", "action_repeat"])
def test_bad_numbers_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0"):
        PointMaze(**{name: 0})
