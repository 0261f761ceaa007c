import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, truncnorm
from torch import Tensor

from dqs_lightning.diffusion import Box, Support, Tanh, Unbounded
from dqs_lightning.registry import components

SUPPORTS = list(components(Support).values())
SIGMAS = [0.03, 0.3, 2.0, 30.0]
OUTSIDE = [0.0, 1.0, 4.0, 6.0, 7.9, 8.1, 10.9, 11.1, 12.0, 40.0]
"""Distances from the upper bound in units of sigma; the same are used at the lower bound."""


def noised(sigma: float, dtype: torch.dtype) -> Tensor:
    """Returns points inside the box [-1, 1], at its bounds and outside: [B, 1]."""
    inside = [-0.9, 0.0, 0.3]
    beyond = [bound * (1 + sigma * distance) for distance in OUTSIDE for bound in (1, -1)]
    return torch.tensor(inside + beyond, dtype=dtype).unsqueeze(1)


def exact(x: float, sigma: float):
    """Returns SciPy's N(x, sigma^2) truncated to [-1, 1]."""
    return truncnorm((-1 - x) / sigma, (1 - x) / sigma, loc=x, scale=sigma)


def test_all_supports_are_found() -> None:
    assert {"Box", "Tanh", "Unbounded"} <= {cls.__name__ for cls in SUPPORTS}


# Box: proposals


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_box_proposals_are_truncated_normal(sigma: float, dtype: torch.dtype) -> None:
    x, num = noised(sigma, dtype), 4000
    points = Box().propose(x, torch.full_like(x, sigma), num).points.double()[..., 0]
    assert torch.isfinite(points).all()
    assert points.abs().max() <= 1
    for center, column in zip(x.flatten().tolist(), points.T.numpy(), strict=True):
        distribution = exact(center, sigma)
        # Each half of the antithetic pairs is independent in itself.
        for half in (column[: num // 2], column[num // 2 :]):
            assert kstest(half, distribution.cdf, method="asymp").pvalue > 1e-4, f"x={center}"
        assert column.mean() == pytest.approx(distribution.mean(), abs=0.05 * distribution.std()), f"x={center}"


def test_box_proposals_are_inside_any_box() -> None:
    box = Box(-2.0, 0.5)
    x = torch.cat([torch.linspace(-5, 5, 101), torch.tensor([-1e4, 1e4])]).unsqueeze(1)
    for sigma in (1e-3, *SIGMAS):
        points = box.propose(x, torch.full_like(x, sigma), 64).points
        assert ((points >= -2.0) & (points <= 0.5)).all()


def test_box_pairs_are_mirrored_quantiles() -> None:
    sigma = 0.4
    x = torch.tensor([[-1.3], [0.2], [0.9], [2.0]], dtype=torch.float64)
    points = Box().propose(x, torch.full_like(x, sigma), 100).points[..., 0].numpy()
    for center, column in zip(x.flatten().tolist(), points.T, strict=True):
        cdf = exact(center, sigma).cdf(column)
        np.testing.assert_allclose(cdf[:50] + cdf[50:], 1, atol=1e-8)


def test_box_proposals_are_independent_across_rows_and_coordinates() -> None:
    points = Box().propose(torch.zeros(3, 2), torch.ones(3, 1), 4000).points[:2000].reshape(2000, 6)
    correlation = torch.corrcoef(points.T) - torch.eye(6)
    assert correlation.abs().max() < 0.1


# Box: derivatives for the pathwise gradient


@pytest.mark.parametrize("sigma", SIGMAS)
def test_box_dpoint_dx_is_the_derivative(sigma: float) -> None:
    # Without the center of the box, where pairs are exchanged, and points far outside, where the tail is approximate.
    box, step = Box(), 1e-5 * sigma
    offsets = [distance for distance in OUTSIDE if distance < 9]
    x = torch.tensor([-0.7, 0.3] + [bound * (1 + sigma * d) for d in offsets for bound in (1, -1)], dtype=torch.float64)
    x = x.unsqueeze(1)

    def propose(at: Tensor):
        return box.propose(at, torch.full_like(x, sigma), 200, torch.Generator().manual_seed(3))

    difference = (propose(x + step).points - propose(x - step).points) / (2 * step)
    torch.testing.assert_close(propose(x).dpoint_dx, difference, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_box_dpoint_dx_far_outside(sigma: float) -> None:
    box, step = Box(), 1e-4 * sigma
    x = torch.tensor([[1 + 11.2 * sigma], [-1 - 12 * sigma], [1 + 40 * sigma]], dtype=torch.float64)

    def propose(at: Tensor):
        return box.propose(at, torch.full_like(x, sigma), 200, torch.Generator().manual_seed(3))

    # The draws hardly depend on x: their derivative is 1 / u^2 at a distance of u sigma, so only its mean is compared.
    difference = (propose(x + step).points - propose(x - step).points) / (2 * step)
    torch.testing.assert_close(propose(x).dpoint_dx.mean(0), difference.mean(0), rtol=0, atol=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_box_dlog_mass_dx_is_the_derivative(sigma: float, dtype: torch.dtype) -> None:
    """d log P(N(x, sigma^2) in the box) / dx = (mean of the truncated normal - x) / sigma^2, by Tweedie's formula."""
    x = noised(sigma, dtype)
    gradient = Box().propose(x, torch.full_like(x, sigma), 2).dlog_mass_dx.expand_as(x)
    for center, value in zip(x.flatten().tolist(), gradient.flatten().tolist(), strict=True):
        in_units_of_sigma = (exact(center, sigma).mean() - center) / sigma
        assert value * sigma == pytest.approx(in_units_of_sigma, rel=0.02, abs=1e-4), f"x={center}"


@pytest.mark.parametrize("sigma", SIGMAS)
def test_box_dlog_mass_dx_within_the_normals_bulk(sigma: float) -> None:
    x = torch.tensor([-0.95, 0.0, 0.4, 1.0], dtype=torch.float64).unsqueeze(1)
    x = torch.cat([x, 1 + sigma * torch.tensor([[1.0], [3.0], [5.0]], dtype=torch.float64)]).requires_grad_()
    upper, lower = (torch.special.erfc((x - bound) / (sigma * math.sqrt(2))) / 2 for bound in (1, -1))
    (gradient,) = torch.autograd.grad((upper - lower).log().sum(), x)
    proposals = Box().propose(x.detach(), torch.full_like(x, sigma).detach(), 2)
    torch.testing.assert_close(proposals.dlog_mass_dx * sigma, gradient * sigma, rtol=1e-5, atol=1e-8)


def test_box_gradient_is_finite_where_a_random_number_is_zero() -> None:
    """Proposals and derivatives are finite where torch.rand is exactly 0, as it is once in 2^24 float32 draws."""
    x = torch.full((20_000, 1), 0.5)
    seed, num = 146, 2
    drawn = torch.rand(1, *x.shape, generator=torch.Generator().manual_seed(seed))
    assert (drawn == 0).any(), "this seed should draw a 0: choose another one"
    for center in (0.5, -0.5, 1.1, 1.3):
        proposals = Box().propose(
            torch.full_like(x, center), torch.full_like(x, 0.03), num, torch.Generator().manual_seed(seed)
        )
        for name, value in proposals._asdict().items():
            assert torch.isfinite(value).all(), f"{name} at x={center}"


# Every support


@pytest.fixture(params=SUPPORTS, ids=lambda cls: cls.__name__)
def support(request: pytest.FixtureRequest) -> Support:
    return request.param()


@pytest.mark.parametrize("num", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_shape_and_dtype_of_proposals(support: Support, num: int, dtype: torch.dtype) -> None:
    x = torch.zeros(3, 2, dtype=dtype)
    proposals = support.propose(x, torch.ones(3, 1, dtype=dtype), num)
    assert proposals.points.shape == (num, 3, 2)
    assert {value.dtype for value in proposals} == {dtype}
    proposals.dpoint_dx.expand(num, 3, 2)
    proposals.dlog_mass_dx.expand(3, 2)


def test_proposals_follow_their_generator(support: Support) -> None:
    x, before = torch.zeros(4, 2), torch.get_rng_state()
    first, again, other = (
        support.propose(x, torch.ones(4, 1), 8, torch.Generator().manual_seed(seed)).points for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sigma", [0.1, 0.5, 3.0])
def test_proposals_have_their_density(support: Support, sigma: float, dtype: torch.dtype) -> None:
    """The density has the same integral at every x and sigma, and the moments of the draws."""
    distances = torch.tensor([-12.0, -6.5, -1.0, -0.2, 0.0, 1.0, 5.0, 12.0], dtype=dtype).unsqueeze(1)
    x, noise = distances.sign() + sigma * distances, torch.full((8, 1), sigma, dtype=dtype)
    low, high = support.project(torch.tensor([-60.0, 60.0], dtype=dtype))
    cells = 40_000
    grid = low + (high - low) * (torch.arange(cells, dtype=dtype) + 0.5) / cells
    log_density = support.proposal_log_prob(grid[:, None, None].expand(-1, 8, 1), x, noise).double()
    totals = torch.logsumexp(log_density, 0) + torch.log((high - low).double() / cells)
    torch.testing.assert_close(totals, totals[:1].expand(8), rtol=0, atol=2e-3)
    reference = support.proposal_log_prob(grid[:, None, None], x[:1] * 0, noise[:1] * 0 + 0.3).double()
    total = torch.logsumexp(reference[:, 0], 0) + torch.log((high - low).double() / cells)
    torch.testing.assert_close(totals[0], total, rtol=0, atol=2e-3)

    share = torch.softmax(log_density, 0).T
    points = support.propose(x, noise, 20_000).points[..., 0].double()
    mean = share @ grid.double()
    std = (share @ grid.double().square() - mean.square()).sqrt()
    assert ((points.mean(0) - mean).abs() < 0.05 * std).all()
    assert ((points.std(0) - std).abs() < 0.05 * std).all()


def test_density_in_many_dimensions_is_a_product(support: Support) -> None:
    sigma = torch.tensor([[0.1], [0.5], [3.0]], dtype=torch.float64)
    x = torch.randn(3, 4, dtype=torch.float64)
    points = support.propose(x, sigma, 6).points
    columns = [support.proposal_log_prob(points[..., [i]], x[:, [i]], sigma) for i in range(4)]
    gap = support.proposal_log_prob(points, x, sigma) - torch.stack(columns).sum(0)
    torch.testing.assert_close(gap, gap[0, 0].expand_as(gap))


def test_scalar_sigma_equals_a_column(support: Support) -> None:
    x = torch.linspace(-1, 1, 5).unsqueeze(1)
    scalar, column = (
        support.propose(x, sigma, 8, torch.Generator().manual_seed(1)).points
        for sigma in (torch.tensor(0.4), torch.full((5, 1), 0.4))
    )
    torch.testing.assert_close(scalar, column)


def test_to_action_and_from_action_are_inverse(support: Support) -> None:
    action = torch.linspace(-0.99, 0.99, 51, dtype=torch.float64).unsqueeze(1)
    latent = support.from_action(action)
    torch.testing.assert_close(support.to_action(latent), action)
    torch.testing.assert_close(support.from_action(support.to_action(latent)), latent)


def test_latent_density_is_that_of_the_action(support: Support) -> None:
    """exp(log_prob) has the same integral and mean over actions and over latents."""

    def log_prob(a: Tensor) -> Tensor:
        return (2 * a - 4 * (a - 0.2).square()).sum(-1)

    edges = support.project(torch.tensor([-12.0, 12.0], dtype=torch.float64))
    cells = 20_000
    ticks = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    latent = (edges[0] + (edges[1] - edges[0]) * ticks).unsqueeze(1)
    bounds = support.to_action(edges)
    action = (bounds[0] + (bounds[1] - bounds[0]) * ticks).unsqueeze(1)
    over_latent = torch.exp(support.log_prob(log_prob, latent)) * (edges[1] - edges[0]) / cells
    over_action = torch.exp(log_prob(action)) * (bounds[1] - bounds[0]) / cells
    assert over_latent.sum().item() == pytest.approx(over_action.sum().item(), rel=1e-5)
    assert (over_latent @ support.to_action(latent)).item() == pytest.approx((over_action @ action).item(), rel=1e-5)


# Box and Tanh


@pytest.mark.parametrize("cls", [Box, Tanh])
def test_actions_never_leave_the_box(cls: type[Box] | type[Tanh]) -> None:
    support = cls(-2.0, 0.7)
    for scale in (1.0, 10.0, 1e4):
        action = support.to_action(scale * torch.randn(1000, 3))
        assert ((action >= -2.0) & (action <= 0.7)).all()


@pytest.mark.parametrize("cls", [Box, Tanh])
def test_uniform_actions(cls: type[Box] | type[Tanh]) -> None:
    draws = cls(-2.0, 0.7).uniform(2000, torch.zeros(2, 1, dtype=torch.float64))
    assert draws.shape == (2000, 2, 1)
    assert draws.dtype == torch.float64
    for row in range(2):
        assert kstest(draws[:, row, 0].numpy(), "uniform", args=(-2.0, 2.7)).pvalue > 1e-3


@pytest.mark.parametrize("cls", [Box, Tanh])
@pytest.mark.parametrize("dim", [1, 2, 6])
def test_covering_actions_are_each_uniform_and_evenly_distributed(cls: type[Box] | type[Tanh], dim: int) -> None:
    support, like = cls(-2.0, 0.7), torch.zeros(4000, dim, dtype=torch.float64)
    even, loose = support.cover(16, like), support.uniform(16, like)
    assert even.shape == loose.shape and even.dtype == torch.float64
    for index in (0, 7, 15):
        for axis in range(dim):
            assert kstest(even[index, :, axis].numpy(), "uniform", args=(-2.0, 2.7)).pvalue > 1e-3

    def means(actions: Tensor) -> Tensor:  # of a smooth function, one mean for each state; their expectation is known
        return torch.exp(-((actions + 0.4).square().sum(-1) / dim)).mean(0)

    exact = means(support.uniform(400_000, like[:1]))[0]
    assert abs(means(even).mean() - exact) < 5e-3
    assert means(even).std() < {1: 0.2, 2: 0.4, 6: 0.7}[dim] * means(loose).std()


@pytest.mark.parametrize("cls", [Box, Tanh])
@pytest.mark.parametrize("low, high", [(1.0, 1.0), (1.0, -1.0), (-math.inf, 1.0), (-1.0, math.inf), (math.nan, 1.0)])
def test_bad_bounds_are_refused(cls: type[Box] | type[Tanh], low: float, high: float) -> None:
    with pytest.raises(ValueError, match=f"low={low}: must be|high={high}: must be"):
        cls(low, high)


def test_tanh_of_any_bounds_keeps_the_integral() -> None:
    support = Tanh(-2.0, 0.5)
    cells = 20_000
    ticks = (torch.arange(cells, dtype=torch.float64).unsqueeze(1) + 0.5) / cells
    over_latent = torch.exp(support.log_prob(lambda a: 3 * a.sum(-1), 24 * ticks - 12)).sum() * 24 / cells
    assert over_latent.item() == pytest.approx((math.exp(1.5) - math.exp(-6)) / 3, rel=1e-5)


def test_tanh_keeps_its_margin_from_the_bounds() -> None:
    support = Tanh(-2.0, 0.5, margin=0.01)
    bounds = torch.tensor([[-2.0], [0.5], [-3.0], [9.0]], dtype=torch.float64)
    inner = torch.tensor([[-1.9875], [0.4875], [-1.9875], [0.4875]], dtype=torch.float64)
    torch.testing.assert_close(support.to_action(support.from_action(bounds)), inner)


@pytest.mark.parametrize("margin", [0.0, 1.0, -0.1, math.nan])
def test_bad_margins_are_refused(margin: float) -> None:
    with pytest.raises(ValueError, match=f"margin={margin}"):
        Tanh(margin=margin)


def test_tanh_log_prob_is_finite_far_out() -> None:
    x = torch.tensor([[-1e3], [-50.0], [50.0], [1e3]], requires_grad=True)
    value = Tanh().log_prob(lambda a: a.sum(-1), x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert torch.isfinite(value).all()
    torch.testing.assert_close(gradient, -2 * x.detach().sign())


# Unbounded, standard units, starts and volumes


def test_unbounded_proposals_are_normal_pairs() -> None:
    x = torch.tensor([[0.3], [-4.0]], dtype=torch.float64)
    points = Unbounded().propose(x, torch.tensor([[0.1], [2.0]], dtype=torch.float64), 4000).points
    torch.testing.assert_close(points[:2000] + points[2000:], (2 * x).expand(2000, 2, 1))
    assert kstest(points[:2000, 0, 0].numpy(), "norm", args=(0.3, 0.1)).pvalue > 1e-3
    assert kstest(points[:2000, 1, 0].numpy(), "norm", args=(-4.0, 2.0)).pvalue > 1e-3


def test_unbounded_has_no_uniform_distribution() -> None:
    with pytest.raises(ValueError, match="Unbounded"):
        Unbounded().uniform(4, torch.zeros(2, 1))
    with pytest.raises(ValueError, match="no uniform distribution"):
        Unbounded().cover(4, torch.zeros(2, 1))


@pytest.mark.parametrize("support", [Box(10.0, 30.0), Tanh(-1.0, 4.0, margin=0.01), Unbounded()])
def test_standard_units_are_the_same_set(support: Support) -> None:
    """center + scale u maps the standard set, its bounds and its latents to the original ones."""
    unit, center, scale = support.standard()
    assert type(unit) is type(support)
    x = torch.linspace(-3, 3, 41, dtype=torch.float64).unsqueeze(1)
    latent = center + scale * x if isinstance(support, Box) else x
    torch.testing.assert_close(center + scale * unit.to_action(x), support.to_action(latent))


def test_starts_are_uniform_over_the_set() -> None:
    x, sigma = torch.full((4000, 2), 0.9), torch.tensor(0.01)
    for support in (Box(-2.0, 1.0), Tanh(-2.0, 1.0)):
        starts = support.to_action(support.start(x, sigma, torch.Generator().manual_seed(0)))
        assert kstest(starts.flatten().numpy(), "uniform", args=(-2.0, 3.0)).statistic < 0.03
    around = Unbounded().start(x, sigma, torch.Generator().manual_seed(0))
    assert around.shape == x.shape
    assert around.std().item() == pytest.approx(0.01, rel=0.05)


def test_log_volume() -> None:
    assert Box().log_volume(6) == pytest.approx(6 * math.log(2))
    assert Tanh(-2.0, 0.5).log_volume(3) == pytest.approx(3 * math.log(2.5))
    with pytest.raises(ValueError, match="support=Unbounded: must have a finite volume"):
        Unbounded().log_volume(2)


def test_the_density_on_a_box_has_the_derivative_of_the_energy_at_a_bound() -> None:
    """Points are projected onto the bounds before their gradients are taken."""
    x = torch.tensor([[-2.0], [-1.0], [0.3], [1.0], [2.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(Box().log_prob(lambda a: 3 * a.sum(-1), x).sum(), x)
    torch.testing.assert_close(gradient, torch.tensor([[0.0], [3.0], [3.0], [3.0], [0.0]]))
