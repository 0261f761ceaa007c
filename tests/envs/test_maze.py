"""Tests of the mazes: walls block moves, goals give rewards and end episodes, and snapshots continue bitwise."""

from typing import Any

import pytest
import torch
from torchrl.envs.utils import check_env_specs, step_mdp

from dqs_lightning.envs import Maze
from dqs_lightning.registry import describe


def test_meets_torchrl_specs_and_the_contract_of_environments() -> None:
    env = Maze().make(3, seed=0)
    check_env_specs(env)
    steps = env.rollout(30, break_when_any_done=False)
    assert torch.equal(steps["observation"], steps["position"])
    assert steps["position"].abs().max() <= 1
    ended = steps["next", "done"]
    assert torch.equal(ended, steps["next", "terminated"] | steps["next", "truncated"])
    assert not (steps["next", "terminated"] & steps["next", "truncated"]).any()


def _side(maze: Maze, points: torch.Tensor) -> torch.Tensor:
    return points.abs().amax(-1) < 0.4


def test_the_room_can_only_be_left_through_doors() -> None:
    maze = Maze()
    start = 2 * torch.rand(20_000, 2, dtype=torch.float64) - 1
    end = maze.blocked(start, start + 1.2 * (2 * torch.rand(20_000, 2, dtype=torch.float64) - 1))
    assert end.abs().max() <= 1
    crossed = _side(maze, start) != _side(maze, end)
    assert crossed.sum() > 100
    # The straight line between start and end crosses the room's boundary at a door.
    fine = torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None, None]
    way = start[crossed] + fine * (end - start)[crossed]
    inside = _side(maze, way)
    first = (inside != inside[0]).float().argmax(0)
    at_boundary = way.gather(0, first[None, :, None].expand(1, -1, 2))[0]
    assert at_boundary.abs().amin(-1).max() < 0.15 + 1e-3


def test_repeated_moves_against_a_wall_never_cross_it() -> None:
    """A point that is pushed against a wall repeatedly, at any angle, stays on its side."""
    maze = Maze(walls=[[0.0, -1.0, 0.0, 1.0]], goals=[[0.9, 0.9]])
    position = torch.stack([torch.full((500,), -1e-3), torch.linspace(-1, 1, 500)], -1).double()
    for angle in torch.linspace(-1.57, 1.57, 200):
        move = torch.stack([angle.cos(), angle.sin()]).double() * 0.3
        position = maze.blocked(position, position + move)
    assert (position[:, 0] < 0).all()


def test_reaching_a_goal_gives_its_reward_once_and_terminates() -> None:
    maze = Maze(
        walls=[], goals=[[0.5, 0.0], [-0.5, 0.0]], rewards=[2.0, 3.0], goal_radius=0.1, start_noise=0.0, step=0.5
    )
    env = maze.make(3, seed=0)
    start = env.reset()
    assert start["goal"].flatten().tolist() == [-1, -1, -1]
    start["action"] = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    after = env.step(start)["next"]
    assert after["reward"].flatten().tolist() == [2.0, 3.0, 0.0]
    assert after["goal"].flatten().tolist() == [0, 1, -1]
    assert after["terminated"].flatten().tolist() == [True, True, False]


def test_the_horizon_truncates_every_episode() -> None:
    env = Maze(horizon=4).make(1, seed=0)
    steps = env.rollout(9, policy=lambda td: td.set("action", torch.zeros(1, 2)), break_when_any_done=False)
    assert steps["next", "truncated"].flatten().nonzero().flatten().tolist() == [3, 7]


def test_members_have_independent_random_streams() -> None:
    three, one = Maze().make(3, seed=5).reset(), Maze().make(1, seed=7).reset()
    assert torch.equal(three["position"][2], one["position"][0])
    assert len(three["position"].unique(dim=0)) == 3


def test_a_snapshot_continues_bitwise() -> None:
    env, other = Maze().make(4, seed=1), Maze().make(4, seed=99)
    steps = env.rollout(13, break_when_any_done=False)
    saved = env.snapshot()
    actions = [env.rand_action()["action"] for _ in range(30)]

    def walk(env: Any, tensordict: Any) -> torch.Tensor:
        seen = []
        for action in actions:
            tensordict["action"] = action
            _, tensordict = env.step_and_maybe_reset(tensordict)
            seen.append(tensordict["position"])
        return torch.stack(seen)

    expected = walk(env, env.maybe_reset(step_mdp(steps[:, -1])))
    other.restore(saved)
    assert torch.equal(walk(other, other.maybe_reset(other.reset())), expected)


def test_connected_walls_form_one_obstacle_and_walls_at_the_boundary_none() -> None:
    assert len(Maze().obstacles) == 4  # the four corners of the room
    joined = Maze(walls=[[-0.5, 0, 0, 0], [0, 0, 0, 0.5], [-1, 0.5, -0.8, 0.5]])
    assert len(joined.obstacles) == 1  # two walls form one obstacle; the third touches the box


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 0}, "step=0"),
        ({"goal_radius": -1}, "goal_radius=-1"),
        ({"horizon": 0}, "horizon=0"),
        ({"start_noise": 2}, "start_noise=2"),
        ({"goals": []}, "goals="),
        ({"goals": [[0, 3]]}, "goals="),
        ({"walls": [[0, 0, 1]]}, "walls="),
        ({"rewards": [1.0]}, "rewards=.*4 goals"),
    ],
)
def test_invalid_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Maze(**changes)


def test_its_description_holds_only_plain_values() -> None:
    again = Maze(**describe(Maze(rewards=[2, 1, 1, 1]))["init_args"])
    assert list(again.rewards or []) == [2, 1, 1, 1] and len(again.walls) == 8
