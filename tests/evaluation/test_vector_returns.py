"""Tests of the returns of several objectives: discounts, dominance, and the area against an estimate."""

import pytest
import torch

from dqs_lightning.envs import ObjectivesMaze
from dqs_lightning.evaluation.objectives import dominated, hypervolume, vector_returns


def test_vector_returns_discount_each_objective_of_the_first_episode() -> None:
    maze = ObjectivesMaze(
        [1.0, 0.0], [], [[0.5, 0.0]], [[3.0, 1.0]], [0.5, -1.0], 0.1, [0.0, 0.0], 0.0, 0.25, horizon=5
    )
    env = maze.make(2, seed=0)
    actions = iter([torch.tensor([[1.0, 0.0], [0.0, 0.0]])] * 9)
    found = vector_returns(env, lambda observation: next(actions), discount=0.5)
    rest = sum(0.5**t for t in range(5))
    torch.testing.assert_close(found, torch.tensor([[0.5 + 0.5 * 3.5, -1.0], [0.5 * rest, -rest]]))


def test_points_that_another_one_dominates() -> None:
    points = torch.tensor([[1.0, 1.0], [2.0, 0.0], [1.0, 0.5], [1.0, 1.0], [0.0, 2.0]])
    assert dominated(points).tolist() == [False, False, True, False, False]


def test_the_hypervolume_is_the_share_of_uniform_points_that_are_dominated() -> None:
    torch.manual_seed(0)
    points, reference = torch.rand(12, 2), (0.1, 0.2)
    drawn = torch.rand(200_000, 2)
    above = (drawn > torch.tensor(reference)).all(-1)
    share = (above & (drawn.unsqueeze(1) < points).all(-1).any(-1)).float().mean()
    assert hypervolume(points, reference) == pytest.approx(float(share), abs=5e-3)
    kept = points[~dominated(points)]
    assert hypervolume(kept, reference) == pytest.approx(hypervolume(points, reference))
    assert hypervolume(torch.tensor([[0.05, 1.0], [2.0, 0.1]]), reference) == 0


def test_three_objectives_are_refused() -> None:
    with pytest.raises(ValueError, match="points have 3 objectives and reference 2: must be 2"):
        hypervolume(torch.zeros(4, 3), (0, 0))
