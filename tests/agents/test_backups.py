import pytest
import torch
from torch import Tensor

from dqs_lightning.agents.backups import Backup, Plain, Soft
from dqs_lightning.diffusion import Box, Tanh, Unbounded
from dqs_lightning.registry import components

BACKUPS = list(components(Backup).values())
TEMPERATURES = [0.05, 0.5, 5.0]


def q_value(a: Tensor) -> Tensor:
    """Two hills, of another height in each of three states: [..., 3, 1] -> [..., 3]."""
    state = torch.tensor([0.0, 1.0, -2.0], dtype=a.dtype)
    return state + (torch.sin(4 * a) + 0.5 * a).squeeze(-1) * (1 + state.abs())


@pytest.fixture
def action() -> Tensor:
    return 2 * torch.rand(3, 1, dtype=torch.float64) - 1


def test_all_backups_are_found() -> None:
    assert {"Plain", "Soft"} <= {cls.__name__ for cls in BACKUPS}


@pytest.mark.parametrize("cls", BACKUPS, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_moves_with_a_constant(cls: type[Backup], action: Tensor, temperature: float) -> None:
    def value(constant: float) -> Tensor:
        torch.manual_seed(3)
        return cls()(lambda a: q_value(a) + constant, action, torch.tensor(temperature, dtype=torch.float64), Box())

    assert value(0.0).shape == (3,)
    for constant in (1e4, -1e4):
        torch.testing.assert_close(value(constant), value(0.0) + constant)


def test_plain_is_the_value_of_the_policys_action(action: Tensor) -> None:
    assert torch.equal(Plain()(q_value, action, torch.tensor(0.5), Box()), q_value(action))


@pytest.mark.parametrize("support", [Box(), Tanh(), Box(-2.0, 0.5)], ids=["Box", "Tanh", "other walls"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_soft_converges_to_quadrature(support: Box | Tanh, action: Tensor, temperature: float) -> None:
    grid = support.low + (support.high - support.low) * (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    q = q_value(grid[:, None, None].expand(-1, 3, 1))
    exact = temperature * torch.log(torch.exp((q - q.amax(0)) / temperature).mean(0)) + q.amax(0)
    value = Soft(num_candidates=200_000)(q_value, action, torch.tensor(temperature, dtype=torch.float64), support)
    torch.testing.assert_close(value, exact, rtol=0, atol=0.02)
    assert (value > q.mean(0)).all()
    assert (value < q.amax(0)).all()


def test_soft_goes_from_the_maximum_to_the_mean(action: Tensor) -> None:
    """As T rises; candidate for candidate, so that no sampling error stands between."""
    torch.manual_seed(3)
    q = q_value(Box().uniform(64, action))
    values = []
    for temperature in (1e-6, *TEMPERATURES, 1e6):
        torch.manual_seed(3)
        values.append(Soft(num_candidates=64)(q_value, action, torch.tensor(temperature, dtype=torch.float64), Box()))
    torch.testing.assert_close(values[0], q.amax(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(values[-1], q.mean(0), rtol=0, atol=1e-5)
    assert (torch.stack(values).diff(dim=0) < 0).all()


def test_soft_does_not_consult_the_policy(action: Tensor) -> None:
    values = []
    for policy in (action, -action):
        torch.manual_seed(3)
        values.append(Soft()(q_value, policy, torch.tensor(0.5), Box()))
    assert torch.equal(values[0], values[1])


def test_soft_is_finite_where_exp_overflows(action: Tensor) -> None:
    value = Soft()(lambda a: 1e6 * q_value(a), action.float(), torch.tensor(1e-3), Box())
    assert torch.isfinite(value).all()


def test_soft_needs_a_finite_volume(action: Tensor) -> None:
    with pytest.raises(ValueError, match="Unbounded"):
        Soft()(q_value, action, torch.tensor(0.5), Unbounded())


def test_no_candidates_are_refused() -> None:
    with pytest.raises(ValueError, match="num_candidates=0"):
        Soft(num_candidates=0)
