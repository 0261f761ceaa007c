"""Tests of the critic losses: the outputs that minimise them, their gradients, and the target returns."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dqs_lightning.agents.critic_losses import CriticLoss, Quantiles, SquaredError
from dqs_lightning.registry import components, describe

LOSSES = pytest.mark.parametrize(
    "loss",
    [*(cls() for cls in components(CriticLoss).values()), Quantiles(5, 0)],
    ids=lambda loss: f"{type(loss).__name__}{describe(loss)['init_args']}",
)
VALUE = torch.tensor([1.0, -2.0, 30.0])


def outputs_of(loss: CriticLoss) -> Tensor:
    """Returns outputs of two target critics in three states, [2, 3, N]."""
    return 10 * torch.randn(2, 3, loss.outputs, generator=torch.Generator().manual_seed(0))


def minimiser(loss: CriticLoss, returns: Tensor) -> Tensor:
    """Returns the outputs [2, N] for one state and action that minimise the loss against its returns [B]."""
    outputs = torch.zeros(2, 1, loss.outputs, dtype=returns.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([outputs], max_iter=1000, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        found = loss.loss(outputs.expand(-1, len(returns), -1), returns.unsqueeze(-1))
        found.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        return found

    for _ in range(5):
        optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch gives it no types
    return outputs.detach().squeeze(1)


LEVELS = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000


def test_squared_error_fits_the_mean() -> None:
    returns = -100 * torch.log1p(-LEVELS)  # of an exponential distribution, whose mean is not its median
    expected = returns.mean().expand(2, 1)
    torch.testing.assert_close(minimiser(SquaredError(), returns), expected, atol=1e-3, rtol=0)


def test_quantiles_fit_the_quantiles() -> None:
    """The outputs that minimise the loss are the quantiles of the returns.

    The returns differ so much that the Huber loss is close to the absolute error.
    """
    expected = -100 * torch.log1p(-(torch.arange(8, dtype=torch.float64) + 0.5) / 8)
    found = minimiser(Quantiles(8), -100 * torch.log1p(-LEVELS))
    torch.testing.assert_close(found, expected.expand(2, 8), atol=1.0, rtol=0)


def test_quantiles_have_the_value_and_gradient_of_the_quantile_huber_loss() -> None:
    loss, outputs = Quantiles(5, 1), (3 * torch.randn(2, 16, 5)).requires_grad_()
    target = 3 * torch.randn(16, 8)
    levels = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]).unsqueeze(-1)
    error = target.unsqueeze(-2) - outputs.unsqueeze(-1)
    share = (levels - (error < 0).float()).abs()
    expected = (share * F.huber_loss(error, torch.zeros_like(error), reduction="none")).mean()
    found = loss.loss(outputs, target)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, outputs), torch.autograd.grad(expected, outputs))


@LOSSES
def test_returns_shift_with_the_value(loss: CriticLoss) -> None:
    returns = loss.returns(VALUE, outputs_of(loss).unsqueeze(1))
    assert returns.shape[0] == 3
    torch.testing.assert_close(loss.returns(VALUE + 7, outputs_of(loss).unsqueeze(1)), returns + 7)


@LOSSES
def test_only_the_largest_quantiles_are_dropped(loss: CriticLoss) -> None:
    """The mean of the returns is V; with `dropped` the smallest of the pool are kept and the mean is below V."""
    returns = loss.returns(VALUE, outputs_of(loss).unsqueeze(1))
    dropped = getattr(loss, "dropped", 0)
    if not dropped:
        torch.testing.assert_close(returns.mean(-1), VALUE)
        return
    pool = outputs_of(loss).transpose(0, 1).reshape(3, -1)
    pool = (pool - pool.mean(-1, keepdim=True) + VALUE.unsqueeze(-1)).sort(-1).values
    torch.testing.assert_close(returns.sort(-1).values, pool[:, : 2 * (loss.outputs - dropped)])
    assert (returns.mean(-1) < VALUE).all()


@LOSSES
def test_gradients_of_critics_and_states_are_independent(loss: CriticLoss) -> None:
    def gradient(outputs: Tensor, target: Tensor) -> Tensor:
        outputs = outputs.clone().requires_grad_()
        return torch.autograd.grad(loss.loss(outputs, target), outputs)[0]

    outputs, target = outputs_of(loss), VALUE.unsqueeze(-1)
    before = gradient(outputs, target)
    other_critic, other_state = outputs.clone(), target.clone()
    other_critic[1] += 30
    other_state[1] += 30
    after = gradient(other_critic, target)
    torch.testing.assert_close(after[0], before[0])
    assert (after[1] != before[1]).any()
    after = gradient(outputs, other_state)
    torch.testing.assert_close(after[:, [0, 2]], before[:, [0, 2]])
    assert (after[:, 1] != before[:, 1]).any()


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="num=0: must be >= 1"):
        Quantiles(0)
    for dropped, message in ((-1, ">= 0"), (5, "< num=5")):
        with pytest.raises(ValueError, match=f"dropped={dropped}: must be {message}"):
            Quantiles(5, dropped)


def test_a_loss_is_described_by_its_arguments() -> None:
    assert describe(Quantiles(7, 1))["init_args"] == {"num": 7, "dropped": 1}
