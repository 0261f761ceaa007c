import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dqs_lightning.networks import (
    INNER_PRECISIONS,
    CriticPair,
    QNetwork,
    inner_dtype,
    multiplies_bfloat16,
    soft_update,
)


def plain(network: QNetwork, observation: Tensor, action: Tensor) -> Tensor:
    """The same MLP, on the concatenation (s, a): one observation for each action."""
    hidden = torch.cat([observation, action], -1)
    layers = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
    for layer in layers[:-1]:
        hidden = F.relu(F.linear(hidden, layer.weight, layer.bias))
    return F.linear(hidden, layers[-1].weight, layers[-1].bias).squeeze(-1)


@pytest.fixture(params=[(16,), (16, 8), (16, 8, 4)], ids=str)
def network(request: pytest.FixtureRequest) -> QNetwork:
    return QNetwork(3, 2, request.param).double()


@pytest.fixture
def observation() -> Tensor:
    return torch.randn(5, 3, dtype=torch.float64)


def test_q_is_an_mlp_of_observation_and_action(network: QNetwork, observation: Tensor) -> None:
    action = torch.randn(5, 2, dtype=torch.float64)
    value = network(observation, action)
    assert value.shape == (5,)
    torch.testing.assert_close(value, plain(network, observation, action))


def test_many_actions_equal_a_loop(network: QNetwork, observation: Tensor) -> None:
    action = torch.randn(4, 7, 5, 2, dtype=torch.float64)
    together = network(observation, action)
    assert together.shape == (4, 7, 5)
    one_by_one = [torch.stack([network(observation, row) for row in block]) for block in action]
    torch.testing.assert_close(together, torch.stack(one_by_one))


def test_gradients_are_the_plain_ones(network: QNetwork, observation: Tensor) -> None:
    action = torch.randn(4, 5, 2, dtype=torch.float64, requires_grad=True)
    inputs = [action, *network.parameters()]
    fast = torch.autograd.grad(network(observation, action).square().sum(), inputs)
    slow = torch.autograd.grad(plain(network, observation.expand(4, 5, 3), action).square().sum(), inputs)
    torch.testing.assert_close(fast, slow)


def test_inputs_are_left_alone(network: QNetwork, observation: Tensor) -> None:
    action = torch.randn(5, 2, dtype=torch.float64)
    kept = observation.clone(), action.clone()
    network(observation, action)
    assert torch.equal(observation, kept[0])
    assert torch.equal(action, kept[1])


@pytest.mark.parametrize("shape", [(5, 2), (4, 5, 2)], ids=str)
@pytest.mark.parametrize("reduction", ["min", "mean"])
def test_pair_holds_two_networks_and_reduces_them(observation: Tensor, shape: tuple[int, ...], reduction: str) -> None:
    pair = CriticPair(3, 2, (16, 16), reduction).double()
    action = torch.randn(shape, dtype=torch.float64)
    both = pair(observation, action)
    assert both.shape == (2, *shape[:-1])
    for value, member in zip(both, pair.members, strict=True):
        torch.testing.assert_close(value, member(observation, action))
    assert not torch.allclose(both[0], both[1])
    reduced = both.min(0).values if reduction == "min" else both.mean(0)
    torch.testing.assert_close(pair.value(observation, action), reduced)
    torch.testing.assert_close(pair.given(observation, torch.float64)(action), reduced)
    assert len({parameter.data_ptr() for parameter in pair.parameters()}) == len(list(pair.parameters()))


@pytest.mark.parametrize("hidden", [(16,), (64, 64), (64, 32, 16)], ids=str)
@pytest.mark.parametrize("shape", [(5,), (7, 5), (3, 300, 5)], ids=str)
def test_bound_observations_change_nothing(hidden: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """In the parameters' own precision: value and gradient in the action, in however many chunks."""
    pair, observation = CriticPair(3, 2, hidden).double(), torch.randn(5, 3, dtype=torch.float64)
    action = torch.randn(*shape, 2, dtype=torch.float64, requires_grad=True)
    bound, plainly = pair.given(observation, torch.float64)(action), pair.value(observation, action)
    torch.testing.assert_close(bound, plainly)
    gradients = [torch.autograd.grad(value.square().sum(), action)[0] for value in (bound, plainly)]
    torch.testing.assert_close(*gradients)
    assert all(parameter.grad is None for parameter in pair.parameters())


def test_a_large_state_value_costs_no_precision_of_the_advantage() -> None:
    """Q is about 800 and moves by 1 with the action: rounding Q, or a hidden layer, would hide that."""
    torch.manual_seed(0)
    pair, observation, action = CriticPair(3, 2), torch.randn(8, 3), torch.rand(64, 8, 2) * 2 - 1
    for member in pair.members:
        with torch.no_grad():
            member.first.bias.add_(3.0)
            member.last.weight.copy_(member.last.weight.abs() * 100)
            member.first.weight[:, 3:] *= 0.2
    exact = pair.value(observation, action)
    error = pair.given(observation, torch.bfloat16)(action) - exact
    rounded = exact.bfloat16().float() - exact
    assert exact.mean() > 100 * exact.std(0).mean()
    assert error.std() < 0.02 * exact.std(0).mean()
    assert rounded.std() > 10 * error.std()


def test_precision_by_name_and_hardware() -> None:
    like = torch.zeros(1)
    assert inner_dtype("float32", like) is torch.float32
    assert inner_dtype("bfloat16", like) is torch.bfloat16
    assert inner_dtype("auto", like) is (torch.bfloat16 if multiplies_bfloat16("cpu") else torch.float32)
    assert all(inner_dtype(name, like.double()) is torch.float64 for name in INNER_PRECISIONS)
    assert not multiplies_bfloat16("meta")


@pytest.mark.parametrize("tau", [0.0, 0.005, 0.3, 1.0])
def test_soft_update(tau: float) -> None:
    target, online = CriticPair(3, 2, (8,)).double(), CriticPair(3, 2, (8,)).double()
    expected = [(1 - tau) * old + tau * new for old, new in zip(target.parameters(), online.parameters(), strict=True)]
    unchanged = [new.clone() for new in online.parameters()]
    soft_update(target, online, tau)
    torch.testing.assert_close(list(target.parameters()), expected)
    assert all(torch.equal(a, b) for a, b in zip(online.parameters(), unchanged, strict=True))
    assert all(parameter.requires_grad and parameter.grad_fn is None for parameter in target.parameters())


def test_soft_update_keeps_the_networks_apart() -> None:
    target, online = QNetwork(3, 2, (8,)), QNetwork(3, 2, (8,))
    soft_update(target, online, 1.0)
    with torch.no_grad():
        online.first.weight.add_(1)
    torch.testing.assert_close(target.first.weight + 1, online.first.weight)


def test_refuses_another_reduction() -> None:
    with pytest.raises(ValueError, match="critic_reduction='max': allowed are min, mean"):
        CriticPair(3, 2, (16,), "max")
