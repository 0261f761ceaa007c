import inspect
import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dqs_lightning.agents.backups import Backup, BackupInput, BestOf, ExpectedQ, SelfNormalised, Soft, SoftPolicyValue
from dqs_lightning.diffusion import Box, Support, Tanh, Unbounded
from dqs_lightning.registry import components, describe

BACKUPS = list(components(Backup).values())
CANDIDATE_BACKUPS = [Soft, SelfNormalised]
TEMPERATURES = [0.05, 0.5, 5.0]
SUPPORTS = pytest.mark.parametrize("support", [Box(), Tanh(), Box(-2.0, 0.5)], ids=["Box", "Tanh", "other bounds"])
DTYPE = torch.float64
GRID = 2 * (torch.arange(20_000, dtype=DTYPE) + 0.5) / 20_000 - 1


def q_value(a: Tensor) -> Tensor:
    """Q with two maxima whose heights differ between three states: [..., 3, 1] -> [..., 3]."""
    state = torch.tensor([0.0, 1.0, -2.0], dtype=a.dtype)
    return state + (torch.sin(4 * a) + 0.5 * a).squeeze(-1) * (1 + state.abs())


def entropy() -> Tensor:
    return torch.tensor([0.1, -0.2, 0.3], dtype=DTYPE)


def no_entropy() -> Tensor:
    raise AssertionError("the entropy was computed")


def value_of(
    backup: Backup,
    q: Callable[[Tensor], Tensor],
    actions: Tensor,
    temperature: float,
    support: Support | None = None,
    entropy: Callable[[], Tensor] = no_entropy,
) -> Tensor:
    scale = torch.tensor(temperature, dtype=actions.dtype)
    backup_input = BackupInput(q, actions, q(actions), scale, support or Box(), entropy)
    with torch.no_grad():
        return backup.value(backup_input)


@pytest.fixture
def actions() -> Tensor:
    return 2 * torch.rand(4, 3, 1, dtype=DTYPE) - 1


@pytest.fixture(params=BACKUPS, ids=lambda cls: cls.__name__)
def cls(request: pytest.FixtureRequest) -> type[Backup]:
    return request.param


def test_all_backups_are_found() -> None:
    assert {"BestOf", "ExpectedQ", "Soft", "SelfNormalised", "SoftPolicyValue"} == {cls.__name__ for cls in BACKUPS}


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_constant_added_to_q_is_added_to_the_value(cls: type[Backup], actions: Tensor, temperature: float) -> None:
    def value(constant: float) -> Tensor:
        torch.manual_seed(3)
        return value_of(cls(), lambda a: q_value(a) + constant, actions, temperature, entropy=entropy)

    assert value(0.0).shape == (3,)
    for constant in (1e4, -1e4):
        torch.testing.assert_close(value(constant), value(0.0) + constant)


@pytest.mark.parametrize("num", [1, 2, 4, 7])
def test_takes_any_number_of_actions(cls: type[Backup], num: int) -> None:
    value = value_of(cls(), q_value, torch.zeros(num, 3, 1), 0.5, entropy=lambda: entropy().float())
    assert value.shape == (3,)
    assert value.dtype == torch.float32
    assert torch.isfinite(value).all()


def test_only_soft_policy_value_computes_the_entropy(cls: type[Backup], actions: Tensor) -> None:
    if cls is SoftPolicyValue:
        with pytest.raises(AssertionError, match="the entropy was computed"):
            value_of(cls(), q_value, actions, 0.5)
    else:
        value_of(cls(), q_value, actions, 0.5)


def test_every_argument_is_an_attribute(cls: type[Backup]) -> None:
    described = describe(cls())
    assert set(described["init_args"]) == set(inspect.signature(cls).parameters)
    assert describe(cls(**described["init_args"])) == described
    assert cls().policy_actions >= 1


@pytest.mark.parametrize("temperature", [1e-6, 1e-3])
@pytest.mark.parametrize("support", [Box(), Tanh()], ids=["Box", "Tanh"])
@pytest.mark.parametrize("dim", [1, 21])
def test_finite_at_tiny_temperatures(cls: type[Backup], support: Support, temperature: float, dim: int) -> None:
    """The value is finite in float32 where exp(Q/T) overflows and actions are at the bounds."""
    corners = torch.ones(8, 5, dim)
    corners[4:] = 2 * torch.rand(4, 5, dim) - 1
    value = value_of(cls(), lambda a: 1e3 * a.sum(-1), corners, temperature, support, lambda: torch.zeros(5))
    assert torch.isfinite(value).all()
    assert (value <= 1.001e3 * dim).all()


def test_expected_q_is_the_value_of_the_first_action(actions: Tensor) -> None:
    assert torch.equal(value_of(ExpectedQ(), q_value, actions, 0.5), q_value(actions[0]))


def test_best_of_is_the_largest_value_at_each_state(actions: Tensor) -> None:
    value = value_of(BestOf(), q_value, actions, 0.5)
    assert torch.equal(value, q_value(actions).max(0).values)
    assert len(q_value(actions).argmax(0).unique()) > 1
    assert torch.equal(value_of(BestOf(1), q_value, actions[:1], 0.5), value_of(ExpectedQ(), q_value, actions, 0.5))


def test_soft_policy_value_is_the_mean_plus_the_entropy_relative_to_uniform(actions: Tensor) -> None:
    value = value_of(SoftPolicyValue(), q_value, actions, 0.5, Box(-2.0, 0.5), entropy)
    torch.testing.assert_close(value, q_value(actions).mean(0) + 0.5 * (entropy() - math.log(2.5)))


@SUPPORTS
def test_soft_policy_value_of_a_uniform_policy_is_the_mean(support: Box | Tanh) -> None:
    uniform = support.uniform(6, torch.zeros(3, 4, dtype=DTYPE))
    full = torch.full((3,), 4 * math.log(support.high - support.low), dtype=DTYPE)
    value = value_of(SoftPolicyValue(), lambda a: a.sum(-1), uniform, 0.5, support, lambda: full)
    torch.testing.assert_close(value, uniform.sum(-1).mean(0))


@SUPPORTS
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("num", [0, 4])
def test_converges_to_quadrature(
    support: Box | Tanh, actions: Tensor, temperature: float, clip: float | None, num: int
) -> None:
    """Soft and SelfNormalised converge to quadrature with arbitrary policy actions."""
    grid = support.low + (support.high - support.low) * (GRID + 1) / 2
    q = q_value(grid[:, None, None].expand(-1, 3, 1))
    arguments = {"num_candidates": 40_000, "clip": clip, "policy_actions": num}
    arbitrary = support.low + (support.high - support.low) * (actions + 1) / 2
    value = value_of(Soft(**arguments), q_value, arbitrary, temperature, support)
    exact = temperature * (torch.logsumexp(q / temperature, 0) - math.log(len(q)))
    torch.testing.assert_close(value, exact, rtol=0, atol=0.005 + 0.06 * min(temperature, 1))
    value = value_of(SelfNormalised(**arguments), q_value, arbitrary, temperature, support)
    torch.testing.assert_close(value, (torch.softmax(q / temperature, 0) * q).sum(0), rtol=0, atol=0.05)


@pytest.mark.parametrize("support", [Box(), Tanh()], ids=["Box", "Tanh"])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_converges_to_quadrature_in_two_dimensions(support: Support, temperature: float) -> None:
    def energy(a: Tensor) -> Tensor:
        return torch.sin(3 * a[..., 0] * a[..., 1]) + a[..., 0] - 2 * (a[..., 1] - 0.3).square()

    line = GRID.reshape(-1, 40).mean(1)
    q = energy(torch.cartesian_prod(line, line))
    policy = 2 * torch.rand(4, 64, 2, dtype=DTYPE) - 1
    value = value_of(Soft(num_candidates=5_000), energy, policy, temperature, support).mean()
    exact = temperature * (torch.logsumexp(q / temperature, 0) - math.log(len(q)))
    assert value.item() == pytest.approx(exact.item(), abs=0.08 * temperature)
    value = value_of(SelfNormalised(num_candidates=5_000), energy, policy, temperature, support).mean()
    assert value.item() == pytest.approx((torch.softmax(q / temperature, 0) * q).sum().item(), abs=0.15 * temperature)


def test_soft_goes_from_the_maximum_to_the_mean(actions: Tensor) -> None:
    """Soft falls from the maximum to the mean of Q as T rises.

    The candidates are the same at every T, so sampling errors do not affect the order.
    """
    torch.manual_seed(3)
    q = q_value(Box().cover(64, actions[0]))
    values = []
    for temperature in (1e-6, *TEMPERATURES, 1e6):
        torch.manual_seed(3)
        values.append(value_of(Soft(num_candidates=64, policy_actions=0), q_value, actions, temperature))
    torch.testing.assert_close(values[0], q.amax(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(values[-1], q.mean(0), rtol=0, atol=1e-5)
    assert (torch.stack(values).diff(dim=0) < 0).all()


@pytest.mark.parametrize("cls", CANDIDATE_BACKUPS)
def test_without_policy_actions_the_value_does_not_depend_on_the_policy(
    cls: type[Soft | SelfNormalised], actions: Tensor
) -> None:
    values = []
    for policy in (actions, -actions, actions[:0]):
        torch.manual_seed(3)
        values.append(value_of(cls(policy_actions=0), q_value, policy, 0.5))
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])


# Energies that are sums over dimensions, so that exact values are known: a linear one, and a quadratic one, whose
# Boltzmann distribution is normal around 0.4 and truncated at the bounds. At the dimensions and temperatures of the
# tests uniform candidates alone are too few.
STATES = 2000


def corner(a: Tensor) -> Tensor:
    return a.sum(-1)


def hill(a: Tensor) -> Tensor:
    return -3 * (a - 0.4).square().sum(-1)


def per_dimension(energy: Callable[[Tensor], Tensor], temperature: float) -> tuple[Tensor, float, float]:
    """Returns the Boltzmann distribution on the grid, T log E_U exp(Q/T) and the mean of Q, for one dimension."""
    q = energy(GRID.unsqueeze(-1))
    distribution = torch.softmax(q / temperature, 0)
    soft = temperature * (torch.logsumexp(q / temperature, 0) - math.log(len(q)))
    return distribution, soft.item(), (distribution * q).sum().item()


def draw(distribution: Tensor, *shape: int) -> Tensor:
    cell = torch.searchsorted(distribution.cumsum(0), torch.rand(*shape, dtype=DTYPE)).clamp_max(len(GRID) - 1)
    return GRID[cell]


def entropy_of(distribution: Tensor) -> float:
    return torch.special.entr(distribution).sum().item() + math.log(2 / len(GRID))


def test_the_closed_form_of_a_linear_energy() -> None:
    """Quadrature on the grid equals the closed form T log E_U exp(b a / T) = T log(sinh(b / T) / (b / T))."""
    for temperature in (0.03, 0.3, 3.0):
        b = 1 / temperature
        closed = temperature * (b + math.log1p(-math.exp(-2 * b)) - math.log(2 * b))
        assert per_dimension(corner, temperature)[1] == pytest.approx(closed, rel=1e-5)


@pytest.mark.parametrize("energy", [corner, hill], ids=["corner", "hill"])
@pytest.mark.parametrize("dim, bound", [(6, 0.2), (21, 1.2)])
@pytest.mark.parametrize("temperature", [0.3, 0.03])
def test_bias_in_many_dimensions(
    energy: Callable[[Tensor], Tensor], dim: int, bound: float, temperature: float
) -> None:
    """With samples of the exact policy SoftPolicyValue is unbiased, and the bias of Soft is below `bound` times T."""
    distribution, soft, mean = per_dimension(energy, temperature)
    exact = dim * soft
    policy = draw(distribution, 4, STATES, dim)
    full = torch.full((STATES,), dim * entropy_of(distribution), dtype=DTYPE)
    policy_value = value_of(SoftPolicyValue(), energy, policy, temperature, entropy=lambda: full)
    standard_error = policy_value.std().item() / math.sqrt(STATES)
    assert policy_value.mean().item() == pytest.approx(exact, abs=5 * standard_error + 1e-3 * temperature)
    assert policy_value.std().item() / temperature == pytest.approx(math.sqrt(dim / 4), rel=0.35)
    found = value_of(Soft(), energy, policy[:, :400], temperature)
    assert -bound < (found.mean().item() - exact) / temperature < 0.05
    uniform = value_of(Soft(policy_actions=0), energy, policy[:, :400], temperature)
    assert uniform.mean() < found.mean()
    if dim == 6:
        found = value_of(SelfNormalised(), energy, policy[:, :400], temperature)
        assert abs(found.mean().item() - dim * mean) / temperature < 0.3


@pytest.mark.parametrize("energy", [corner, hill], ids=["corner", "hill"])
def test_with_a_wrong_policy(energy: Callable[[Tensor], Tensor]) -> None:
    """With the policy of 1.5 T SoftPolicyValue is T KL below Soft's exact value, to which Soft still converges."""
    dim, temperature = 6, 0.1
    distribution, soft, _ = per_dimension(energy, temperature)
    wide, _, _ = per_dimension(energy, 1.5 * temperature)
    divergence = dim * (wide * (wide.clamp_min(1e-300) / distribution.clamp_min(1e-300)).log()).sum().item()
    policy = draw(wide, 4, STATES, dim)
    full = torch.full((STATES,), dim * entropy_of(wide), dtype=DTYPE)
    policy_value = value_of(SoftPolicyValue(), energy, policy, temperature, entropy=lambda: full)
    assert divergence > 0.2
    below = (dim * soft - policy_value.mean().item()) / temperature
    assert below == pytest.approx(divergence, abs=5 * policy_value.std().item() / temperature / math.sqrt(STATES))
    found = value_of(Soft(), energy, policy[:, :400], temperature)
    assert abs(found.mean().item() - dim * soft) / temperature < 0.3
    found = value_of(Soft(num_candidates=4096), energy, policy[:, :40], temperature)
    assert abs(found.mean().item() - dim * soft) / temperature < 0.05


def test_the_gradient_step_reduces_the_bias() -> None:
    distribution, soft, _ = per_dimension(corner, 0.1)
    policy = draw(distribution, 4, 400, 21)
    with_step, without = (value_of(Soft(clip=clip), corner, policy, 0.1).mean().item() for clip in (1.0, None))
    assert without < with_step - 0.1
    assert with_step < 21 * soft + 0.01


def test_soft_is_between_the_means_of_the_uniform_and_the_boltzmann_distribution(actions: Tensor) -> None:
    """Soft is at most E_pi[Q], since it is E_pi[Q] - T KL(pi || U) for pi = exp(Q/T), and at least the uniform mean."""
    q = q_value(GRID[:, None, None].expand(-1, 3, 1))
    for temperature in TEMPERATURES:
        soft = value_of(Soft(num_candidates=20_000), q_value, actions, temperature)
        boltzmann = value_of(SelfNormalised(num_candidates=20_000), q_value, actions, temperature)
        assert (q.mean(0) < soft).all()
        assert (soft < boltzmann).all()
        assert (boltzmann < q.amax(0)).all()


def test_number_of_candidates(actions: Tensor) -> None:
    for num, policy_actions in ((1, 0), (64, 4), (64, 1), (50, 3), (16, 4)):
        counts: list[int] = []

        def counted(a: Tensor, counts: list[int] = counts) -> Tensor:
            counts.append(len(a))
            return q_value(a)

        used = actions[:0]  # as with a critic loss that needs no action of the policy
        backup_input = BackupInput(counted, actions, q_value(used), torch.tensor(0.5), Box(), no_entropy)
        Soft(num, policy_actions).value(backup_input)
        assert counts == ([policy_actions] if policy_actions else []) + [num]


def test_backups_that_need_a_finite_volume(cls: type[Backup], actions: Tensor) -> None:
    if cls not in (BestOf, ExpectedQ):
        with pytest.raises(ValueError, match="Unbounded"):
            value_of(cls(), q_value, actions, 0.5, Unbounded(), entropy)


@pytest.mark.parametrize("cls", CANDIDATE_BACKUPS)
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_candidates": 0, "policy_actions": 0}, "num_candidates=0: must be >= 1"),
        ({"num_candidates": 0}, "num_candidates=0: must be >= 1"),
        ({"num_candidates": 15}, "num_candidates=15: must be >= 16"),
        ({"policy_actions": -1}, "policy_actions=-1: must be >= 0"),
        ({"widths": ()}, "widths=[]: must be one or more, each a finite number > 0"),
        ({"widths": (0.1, 0.0)}, "widths=0.0: must be a finite number > 0"),
        ({"clip": 0.0}, "clip=0.0: must be a finite number > 0"),
        ({"uniform_share": 0.0}, "uniform_share=0.0: must be in (0, 1]"),
        ({"uniform_share": 1.1}, "uniform_share=1.1: must be in (0, 1]"),
    ],
)
def test_bad_arguments_are_refused(cls: type[Soft], arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        cls(**arguments)


@pytest.mark.parametrize("cls", [BestOf, SoftPolicyValue])
def test_best_of_and_soft_policy_value_need_a_policy_action(cls: type[SoftPolicyValue]) -> None:
    with pytest.raises(ValueError, match="policy_actions=0: must be >= 1"):
        cls(policy_actions=0)
