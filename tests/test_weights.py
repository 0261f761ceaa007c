"""Tests of the weights of objectives: they are on the simplex, and uniform on it."""

import torch

from dqs_lightning.objectives import uniform_weights


def test_weights_are_uniform_on_the_simplex() -> None:
    """Each is that of Dirichlet(1, 1, 1): of mean 1/3 and, as Beta(1, 2), of variance 1/18."""
    weights = uniform_weights(torch.rand(100_000, 2, generator=torch.Generator().manual_seed(0)))
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(100_000))
    torch.testing.assert_close(weights.mean(0), torch.full((3,), 1 / 3), rtol=0, atol=0.004)
    torch.testing.assert_close(weights.var(0), torch.full((3,), 1 / 18), rtol=0, atol=0.001)


def test_one_objective_has_the_weight_one() -> None:
    assert uniform_weights(torch.rand(4, 0)).tolist() == [[1.0]] * 4
