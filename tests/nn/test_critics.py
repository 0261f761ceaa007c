from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dqs_lightning.diffusion import MLP, Backbone, SimBa
from dqs_lightning.nn.backbones import FeedForward, InnerPrecision, inner_dtype, multiplies_bfloat16
from dqs_lightning.nn.critics import CriticPair, QNetwork, soft_update
from dqs_lightning.nn.observation_norm import ObservationNorm, TaskObservationNorm

BACKBONES = [MLP((16,)), MLP((16, 8)), MLP((16, 8, 4)), MLP((16, 8), layer_norm=True), SimBa(8, 2, 3)]


def plain(network: QNetwork, observation: Tensor, action: Tensor) -> Tensor:
    """Computes the same network from the concatenation (s, a), with one observation for each action."""
    hidden = network.first(torch.cat([observation, action], -1))
    return network.last(network.backbone(network.rest, hidden, F.relu)).squeeze(-1)


def named(backbone: Backbone) -> str:
    return f"{type(backbone).__name__}-{'-'.join(str(value) for value in vars(backbone).values())}"


@pytest.fixture(params=BACKBONES, ids=named)
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


def test_gradients_are_those_of_the_concatenation(network: QNetwork, observation: Tensor) -> None:
    action = torch.randn(4, 5, 2, dtype=torch.float64, requires_grad=True)
    inputs = [action, *network.parameters()]
    fast = torch.autograd.grad(network(observation, action).square().sum(), inputs)
    slow = torch.autograd.grad(plain(network, observation.expand(4, 5, 3), action).square().sum(), inputs)
    torch.testing.assert_close(fast, slow)


def test_inputs_are_unchanged(network: QNetwork, observation: Tensor) -> None:
    action = torch.randn(5, 2, dtype=torch.float64)
    copies = observation.clone(), action.clone()
    network(observation, action)
    assert torch.equal(observation, copies[0])
    assert torch.equal(action, copies[1])


@pytest.mark.parametrize("shape", [(5, 2), (4, 5, 2)], ids=str)
@pytest.mark.parametrize("reduction", ["min", "mean"])
def test_pair_holds_two_networks_and_reduces_them(observation: Tensor, shape: tuple[int, ...], reduction: str) -> None:
    pair = CriticPair(3, 2, MLP((16, 16)), reduction).double()
    action = torch.randn(shape, dtype=torch.float64)
    both = pair(observation, action)
    assert both.shape == (2, *shape[:-1])
    for value, member in zip(both, pair.members, strict=True):
        torch.testing.assert_close(value, member(observation, action))
    assert not torch.allclose(both[0], both[1])
    reduced = both.min(0).values if reduction == "min" else both.mean(0)
    torch.testing.assert_close(pair.value(observation, action), reduced)
    torch.testing.assert_close(pair.bind(observation, torch.float64)(action), reduced)
    assert len({parameter.data_ptr() for parameter in pair.parameters()}) == len(list(pair.parameters()))


def test_q_is_the_mean_of_the_outputs(observation: Tensor) -> None:
    pair, action = CriticPair(3, 2, MLP((16,)), outputs=4).double(), torch.randn(7, 5, 2, dtype=torch.float64)
    outputs = pair.outputs(observation, action)
    assert outputs.shape == (2, 7, 5, 4)
    assert not torch.isclose(outputs[..., 0], outputs[..., 1]).any()
    torch.testing.assert_close(pair(observation, action), outputs.mean(-1))


@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize("backbone", [MLP((64, 64)), *BACKBONES], ids=named)
@pytest.mark.parametrize("shape", [(5,), (7, 5), (3, 300, 5)], ids=str)
def test_bound_observations_give_the_same_values_and_gradients(
    backbone: Backbone, shape: tuple[int, ...], outputs: int
) -> None:
    """In the parameters' precision `bind` gives the same value and gradient in the action, in any number of chunks."""
    pair = CriticPair(3, 2, backbone, outputs=outputs).double()
    observation = torch.randn(5, 3, dtype=torch.float64)
    action = torch.randn(*shape, 2, dtype=torch.float64, requires_grad=True)
    bound, plainly = pair.bind(observation, torch.float64)(action), pair.value(observation, action)
    torch.testing.assert_close(bound, plainly)
    gradients = [torch.autograd.grad(value.square().sum(), action)[0] for value in (bound, plainly)]
    torch.testing.assert_close(*gradients)
    assert all(parameter.grad is None for parameter in pair.parameters())


def test_a_large_state_value_does_not_reduce_the_precision_of_the_advantage() -> None:
    """Differences of about 1 between actions are preserved where Q is about 800.

    Rounding Q or a hidden layer to bfloat16 would lose them.
    """
    torch.manual_seed(0)
    pair, observation, action = CriticPair(3, 2), torch.randn(8, 3), torch.rand(64, 8, 2) * 2 - 1
    for member in pair.members:
        with torch.no_grad():
            member.first.bias.add_(3.0)
            member.last.weight.copy_(member.last.weight.abs() * 100)
            member.first.weight[:, 3:] *= 0.2
    exact = pair.value(observation, action)
    error = pair.bind(observation, torch.bfloat16)(action) - exact
    rounded = exact.bfloat16().float() - exact
    assert exact.mean() > 100 * exact.std(0).mean()
    assert error.std() < 0.02 * exact.std(0).mean()
    assert rounded.std() > 10 * error.std()


def test_precision_by_name_and_hardware() -> None:
    like = torch.zeros(1)
    assert inner_dtype("float32", like) is torch.float32
    assert inner_dtype("bfloat16", like) is torch.bfloat16
    assert inner_dtype("auto", like) is (torch.bfloat16 if multiplies_bfloat16("cpu") else torch.float32)
    assert all(inner_dtype(name, like.double()) is torch.float64 for name in get_args(InnerPrecision))
    assert not multiplies_bfloat16("meta")


@pytest.mark.parametrize("tau", [0.0, 0.005, 0.3, 1.0])
def test_soft_update(tau: float) -> None:
    target, online = CriticPair(3, 2, MLP((8,))).double(), CriticPair(3, 2, MLP((8,))).double()
    expected = [(1 - tau) * old + tau * new for old, new in zip(target.parameters(), online.parameters(), strict=True)]
    unchanged = [new.clone() for new in online.parameters()]
    soft_update(target, online, tau)
    torch.testing.assert_close(list(target.parameters()), expected)
    assert all(torch.equal(a, b) for a, b in zip(online.parameters(), unchanged, strict=True))
    assert all(parameter.requires_grad and parameter.grad_fn is None for parameter in target.parameters())


def test_soft_update_does_not_share_parameters() -> None:
    target, online = QNetwork(3, 2, MLP((8,))), QNetwork(3, 2, MLP((8,)))
    soft_update(target, online, 1.0)
    with torch.no_grad():
        online.first.weight.add_(1)
    torch.testing.assert_close(target.first.weight + 1, online.first.weight)


def test_bad_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match="reduction=max: must be one of min, mean"):
        CriticPair(3, 2, MLP((16,)), "max")


def test_feed_forward_is_first_backbone_last() -> None:
    for backbone in BACKBONES:
        network, x = FeedForward(3, 4, backbone), torch.randn(2, 5, 3)
        linear = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
        assert network(x).shape == (2, 5, 4)
        assert (linear[0].in_features, linear[-1].out_features) == (3, 4)
        network(x).sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())


def test_observations_are_normalised_by_the_statistics_of_all_batches() -> None:
    torch.manual_seed(0)
    norm, batches = (
        ObservationNorm(3),
        torch.tensor([5.0, -30.0, 0.0]) + torch.tensor([2.0, 0.1, 0.0]) * torch.randn(40, 16, 3),
    )
    assert torch.equal(norm.state_dict()["batches"], torch.tensor(0))
    torch.testing.assert_close(norm(batches[0]), batches[0], rtol=1e-4, atol=0)
    for batch in batches:
        norm.update(norm.moments(batch))
    torch.testing.assert_close(norm.mean, batches.mean((0, 1)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.variance, batches.var((0, 1), correction=0), rtol=1e-3, atol=1e-5)
    normalised = norm(batches)
    assert normalised[..., :2].std((0, 1)) == pytest.approx(1, abs=0.01) and normalised.abs().max() < 10
    assert not normalised[..., 2].any()


def test_ranks_with_different_batches_have_the_same_statistics() -> None:
    """The statistics of two ranks, with moments averaged over both, are those of one rank with both batches."""
    whole, ranks = ObservationNorm(3), [ObservationNorm(3) for _ in range(2)]
    for batches in torch.randn(5, 2, 16, 3) * 3 + 1:
        whole.update(whole.moments(batches.reshape(-1, 3)))
        mean = torch.stack([norm.moments(batch) for norm, batch in zip(ranks, batches, strict=True)]).mean(0)
        for norm in ranks:
            norm.update(mean)
    for norm in ranks:
        torch.testing.assert_close(norm.mean, whole.mean)
        torch.testing.assert_close(norm.variance, whole.variance)


def test_each_task_is_normalised_by_its_own_statistics() -> None:
    """Those of `ObservationNorm` with the task's rows alone; the one-hot and absent tasks do not change."""
    torch.manual_seed(0)
    norm, alone = TaskObservationNorm(5, 2), [ObservationNorm(3) for _ in range(2)]
    hot = torch.eye(2).repeat(8, 1)
    for batch in torch.randn(6, 16, 3) * torch.tensor([1.0, 5.0, 0.1]) + 2:
        batch = batch * (1 + 9 * hot[:, :1])
        norm.update(norm.moments(torch.cat([batch, hot], -1)))
        for task, one in enumerate(alone):
            one.update(one.moments(batch[task::2]))
    observation = torch.cat([batch, hot], -1)
    normalised = norm(observation)
    torch.testing.assert_close(normalised[:, 3:], hot, rtol=0, atol=0)
    for task, one in enumerate(alone):
        torch.testing.assert_close(norm.mean[task], one.mean)
        torch.testing.assert_close(norm.variance[task], one.variance)
        torch.testing.assert_close(normalised[task::2, :3], one(batch[task::2]))
    torch.testing.assert_close(norm.inverse(normalised), observation)
    before = norm.mean[1].clone(), norm.variance[1].clone()
    norm.update(norm.moments(observation[::2]))
    torch.testing.assert_close((norm.mean[1], norm.variance[1]), before)
