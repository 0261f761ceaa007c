"""Tests of goal coverage: shares of goals, distinct paths around obstacles, and rollouts."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from dqs_lightning.envs import Maze
from dqs_lightning.evaluation.goal_coverage import count_paths, entropy_of, goal_shares, path_words, roll_out


def _path(*points: tuple[float, float]) -> Tensor:
    """Returns a finely sampled path [T + 1, 1, 2] through points."""
    ends = torch.tensor(points)
    pieces = [a + torch.linspace(0, 1, 50)[:-1, None] * (b - a) for a, b in pairwise(ends)]
    return torch.cat([*pieces, ends[-1:]]).unsqueeze(1)


def _word(*points: tuple[float, float], obstacles: list[tuple[float, float]]) -> tuple[int, ...]:
    return path_words(_path(*points), obstacles)[0]


def test_paths_above_and_below_an_obstacle_have_different_words() -> None:
    one = [(0.0, 0.0)]
    above = _word((-1, 0), (0, 0.5), (1, 0), obstacles=one)
    below = _word((-1, 0), (0, -0.5), (1, 0), obstacles=one)
    assert above != below
    assert _word((-1, 0), (-0.5, 0.9), (0.1, 0.2), (1, 0), obstacles=one) == above  # another shape on the same side


def test_going_back_cancels_a_crossing_and_full_turns_are_counted() -> None:
    one = [(0.0, 0.0)]
    assert _word((-1, 0), (0.5, 0.5), (-1, 0.2), obstacles=one) == ()
    turn = [(-1, 0), (0, 0.5), (1, 0), (0, -0.5), (-1, 0)]
    assert _word(*turn, obstacles=one) == (1,)
    assert _word(*turn, *turn[1:], obstacles=one) == (1, 1)


def test_crossings_at_one_place_are_ordered_and_cancel() -> None:
    stacked = [(0.0, -0.5), (0.0, 0.5)]
    over = _word((-1, 1), (1, 1), obstacles=stacked)
    between = _word((-1, 0), (1, 0), obstacles=stacked)
    assert (over, between) == ((1, 2), (1,))
    assert _word((-1, 1), (1, 1), (-1, 1), obstacles=stacked) == ()


@pytest.mark.parametrize("steps", [3, 40, 400])
def test_words_do_not_depend_on_how_finely_a_path_is_sampled(steps: int) -> None:
    obstacles = [(-0.3, 0.1), (0.0, -0.4), (0.35, 0.2)]
    corners = torch.tensor([[-1.0, 0.0], [-0.1, 0.6], [0.2, -0.7], [1.0, 0.9]])
    pieces = [a + torch.linspace(0, 1, steps)[:, None] * (b - a) for a, b in pairwise(corners)]
    fine = torch.cat(pieces).unsqueeze(1)
    assert path_words(fine, obstacles) == path_words(corners.unsqueeze(1), obstacles)


def test_counts_goals_paths_and_their_entropy() -> None:
    goal = torch.tensor([0, 0, 2, -1])
    shares = goal_shares(goal, 4)
    assert shares.tolist() == [0.5, 0, 0.25, 0]
    assert entropy_of(shares) == pytest.approx(-(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3))
    assert entropy_of(torch.full((4,), 0.2)) == pytest.approx(math.log(4))
    assert entropy_of(torch.zeros(4)) == 0
    assert count_paths([(1,), (-1,), (1,), (2,)], goal) == 3


def test_rollouts_stop_each_environment_at_the_end_of_its_episode() -> None:
    maze = Maze(walls=[], goals=[[0.6, 0.0]], goal_radius=0.1, start_noise=0.0, step=0.2, horizon=5)

    def policy(observation: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0.0], [0.0, 1.0]])

    found = roll_out(maze.make(2, 0), policy)
    assert found.position.shape == (6, 2, 2)
    assert found.goal.tolist() == [0, -1] and found.returns.tolist() == [1, 0]
    torch.testing.assert_close(found.position[:, 0, 0], torch.tensor([0, 0.2, 0.4, 0.6, 0.6, 0.6]))
    torch.testing.assert_close(found.position[:, 1, 1], torch.tensor([0, 0.2, 0.4, 0.6, 0.8, 1.0]))
