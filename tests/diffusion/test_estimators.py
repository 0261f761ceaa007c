from collections.abc import Callable

import pytest
import torch
from scipy.stats import truncnorm
from torch import Tensor, nn

from dqs_lightning.diffusion import (
    Box,
    EnergyEstimator,
    GuidedDefensive,
    Importance,
    LogProb,
    Support,
    TargetScore,
    Unbounded,
    score,
)
from dqs_lightning.registry import components

ESTIMATORS = list(components(EnergyEstimator).values())
INCONSISTENT: set[str] = set()
"""Names of the estimators that say that they do not converge to the denoised mean."""
CONSISTENT = [cls for cls in ESTIMATORS if cls.__name__ not in INCONSISTENT]
SUPPORTS = list(components(Support).values())

PosteriorMean = Callable[[LogProb, Tensor, Tensor, Support], Tensor]
each_estimator = pytest.mark.parametrize("cls", ESTIMATORS, ids=lambda cls: cls.__name__)
each_consistent = pytest.mark.parametrize("cls", CONSISTENT, ids=lambda cls: cls.__name__)


@pytest.fixture(params=SUPPORTS, ids=lambda cls: cls.__name__)
def support(request: pytest.FixtureRequest) -> Support:
    return request.param()


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spread(num: int, dim: int, sigma: float) -> Tensor:
    """Actions of the box, noised: [num, dim] in float64."""
    clean = 2 * torch.rand(num, dim, dtype=torch.float64) - 1
    return clean + sigma * torch.randn_like(clean)


def test_all_estimators_are_found() -> None:
    assert {"GuidedDefensive", "Importance", "TargetScore"} <= {cls.__name__ for cls in ESTIMATORS}


def test_score_is_tweedies() -> None:
    """A normal law N(m, s^2), noised, is N(m, s^2 + sigma^2)."""
    x, sigma, mean, std = torch.randn(5, 2), torch.rand(5, 1) + 0.1, 0.4, 0.7
    denoised = (std**2 * x + sigma**2 * mean) / (std**2 + sigma**2)
    torch.testing.assert_close(score(denoised, x, sigma), (mean - x) / (std**2 + sigma**2))


# Laws of every estimator on every support


@each_estimator
@pytest.mark.parametrize("num_samples", [1, 32])
def test_unchanged_by_a_constant(
    cls: type[EnergyEstimator], support: Support, wells: LogProb, num_samples: int
) -> None:
    x, sigma = spread(64, 2, 0.3), torch.tensor(0.3, dtype=torch.float64)
    plain = cls(num_samples=num_samples)(wells, x, sigma, support, seeded())
    for constant in (1e4, -1e4):
        shifted = cls(num_samples=num_samples)(lambda a: wells(a) + constant, x, sigma, support, seeded())  # noqa: B023
        torch.testing.assert_close(shifted.denoised, plain.denoised, rtol=0, atol=1e-8)
        torch.testing.assert_close(shifted.ess, plain.ess, rtol=1e-6, atol=0)


@each_estimator
@pytest.mark.parametrize("num_samples", [1, 2, 7])
@pytest.mark.parametrize("sigma", [1e-3, 0.03, 0.3, 2.0, 30.0])
def test_finite_at_every_noise(
    cls: type[EnergyEstimator], support: Support, wells: LogProb, num_samples: int, sigma: float
) -> None:
    x = spread(256, 3, sigma).float()
    estimate = cls(num_samples=num_samples)(wells, x, torch.full((256, 1), sigma), support)
    assert estimate.denoised.shape == x.shape
    assert estimate.ess.shape == (256,)
    assert estimate.denoised.dtype == x.dtype
    assert torch.isfinite(estimate.denoised).all()
    assert (estimate.ess >= 1 - 1e-4).all()
    assert (estimate.ess <= num_samples * (1 + 1e-4)).all()


@each_estimator
@pytest.mark.parametrize("sigma", [0.03, 0.3])
def test_near_the_posterior_however_far_outside(
    cls: type[EnergyEstimator], wells: LogProb, posterior_mean: PosteriorMean, sigma: float
) -> None:
    """In float32, from the walls of a box to 40 deviations outside: never the opposite wall, never a huge score."""
    deviations = torch.linspace(0, 40, 161).unsqueeze(1)
    x, noise = torch.cat([1 + sigma * deviations, -1 - sigma * deviations]), torch.tensor(sigma)
    estimate = cls(num_samples=64)(wells, x, noise, Box())
    exact = posterior_mean(wells, x.double(), noise.double(), Box())
    assert (estimate.denoised - exact).abs().max() < 3 * sigma


@each_estimator
def test_follows_its_generator(cls: type[EnergyEstimator], support: Support, wells: LogProb) -> None:
    x, sigma, before = torch.linspace(-1, 1, 16).unsqueeze(1), torch.tensor(0.3), torch.get_rng_state()
    first, again, other = (cls(num_samples=8)(wells, x, sigma, support, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.denoised, again.denoised)
    assert torch.equal(first.ess, again.ess)
    assert not torch.equal(first.denoised, other.denoised)
    assert torch.equal(before, torch.get_rng_state())


@each_estimator
def test_scalar_sigma_equals_a_column(cls: type[EnergyEstimator], support: Support, wells: LogProb) -> None:
    x = torch.linspace(-1, 1, 16).unsqueeze(1)
    scalar, column = (
        cls(num_samples=8)(wells, x, sigma, support, seeded())
        for sigma in (torch.tensor(0.3), torch.full((16, 1), 0.3))
    )
    torch.testing.assert_close(scalar.denoised, column.denoised)


@each_estimator
def test_no_gradient_reaches_the_energy(cls: type[EnergyEstimator], support: Support) -> None:
    network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    estimate = cls(num_samples=8)(lambda a: network(a).squeeze(-1), torch.randn(4, 2), torch.ones(4, 1), support)
    assert not estimate.denoised.requires_grad
    assert not estimate.ess.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


@each_estimator
def test_works_where_gradients_are_off(cls: type[EnergyEstimator], support: Support, wells: LogProb) -> None:
    x, sigma = torch.linspace(-1, 1, 16).unsqueeze(1), torch.tensor(0.3)
    with torch.no_grad():
        off = cls(num_samples=8)(wells, x, sigma, support, seeded())
    torch.testing.assert_close(off, cls(num_samples=8)(wells, x, sigma, support, seeded()))


@each_estimator
def test_no_samples_are_refused(cls: type[EnergyEstimator]) -> None:
    with pytest.raises(ValueError, match="num_samples=0"):
        cls(num_samples=0)


# Convergence to the posterior's mean


@each_consistent
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("sigma", [0.1, 0.4])
def test_converges_to_quadrature(
    cls: type[EnergyEstimator], support: Support, wells: LogProb, posterior_mean: PosteriorMean, dim: int, sigma: float
) -> None:
    """With no guide and with one that points to the wrong side."""
    x, noise = spread(12, dim, sigma), torch.tensor(sigma, dtype=torch.float64)
    exact = posterior_mean(wells, x, noise, support)
    for guide in (None, -x.clamp(-1, 1)):
        error = (cls(num_samples=30_000)(wells, x, noise, support, guide=guide).denoised - exact).abs()
        assert error.mean() < 0.03 * sigma
        assert error.max() < 0.25 * sigma


@each_consistent
@pytest.mark.parametrize("sigma", [0.05, 0.3])
def test_converges_for_an_optimum_in_a_corner(
    cls: type[EnergyEstimator], posterior_mean: PosteriorMean, sigma: float
) -> None:
    def towards_corner(a: Tensor) -> Tensor:
        return a @ torch.tensor([6.0, 3.0], dtype=a.dtype)

    away = sigma * torch.tensor([[0, 0], [1, -0.5], [1.5, 1.5], [-1, 2], [-1, -1], [0, -3]], dtype=torch.float64)
    x, noise = 1 + away, torch.tensor(sigma, dtype=torch.float64)
    exact = posterior_mean(towards_corner, x, noise, Box())
    error = (cls(num_samples=30_000)(towards_corner, x, noise, Box()).denoised - exact).abs()
    assert error.max() < 0.05 * sigma


@each_consistent
def test_error_shrinks_with_samples(
    cls: type[EnergyEstimator], support: Support, wells: LogProb, posterior_mean: PosteriorMean
) -> None:
    x, noise = spread(400, 1, 0.3), torch.tensor(0.3, dtype=torch.float64)
    exact = posterior_mean(wells, x, noise, support)
    few, many = (
        (cls(num_samples=num)(wells, x, noise, support).denoised - exact).square().mean().sqrt() for num in (8, 512)
    )
    # The square root of 64 is 8.
    assert many < few / 4


@each_consistent
def test_gaussian_energy_on_the_line(cls: type[EnergyEstimator]) -> None:
    mean, std = torch.tensor([0.4, -1.0], dtype=torch.float64), 0.5

    def log_prob(a: Tensor) -> Tensor:
        return -(a - mean).square().sum(-1) / (2 * std**2)

    x = torch.tensor([[0.0, 0.0], [0.5, -1.5], [1.2, 0.3]], dtype=torch.float64)
    sigma = torch.tensor([[0.05], [0.2], [0.5]], dtype=torch.float64)
    exact = (std**2 * x + sigma**2 * mean) / (std**2 + sigma**2)
    error = (cls(num_samples=50_000)(log_prob, x, sigma, Unbounded()).denoised - exact).abs()
    assert (error < 0.05 * sigma).all()


# Laws of one or some of them


@pytest.mark.parametrize("cls", [Importance, TargetScore])
def test_effective_samples_from_flat_to_sharp(cls: type[EnergyEstimator]) -> None:
    x, sigma = torch.zeros(8, 2), torch.tensor(0.5)
    flat = cls(num_samples=16)(lambda a: 0 * a.sum(-1), x, sigma, Box()).ess
    tilted = cls(num_samples=16)(lambda a: 2 * a.sum(-1), x, sigma, Box()).ess
    sharp = cls(num_samples=16)(lambda a: 1e5 * a.sum(-1), x, sigma, Box()).ess
    torch.testing.assert_close(flat, torch.full((8,), 16.0))
    assert ((tilted > 1.01) & (tilted < 15.9)).all()
    assert (sharp < 1.01).all()


@pytest.mark.parametrize("cls", [Importance, GuidedDefensive])
def test_weighted_means_stay_in_the_box(cls: type[EnergyEstimator], wells: LogProb) -> None:
    x = torch.linspace(-20, 20, 401).unsqueeze(1)
    for sigma in (1e-3, 0.03, 0.5, 2.0):
        assert cls(num_samples=4)(wells, x, torch.tensor(sigma), Box()).denoised.abs().max() <= 1 + 1e-6


def test_a_guide_sharpens_in_six_dimensions() -> None:
    """Few proposals, a narrow optimum in a corner: looking where the guide and the gradient point pays."""

    def narrow(a: Tensor) -> Tensor:
        return 20 * a.sum(-1)

    x, sigma = spread(200, 6, 0.5), torch.tensor(0.5, dtype=torch.float64)
    # The posterior is a product: a truncated normal around x + 20 sigma^2 in each dimension.
    exact = torch.from_numpy(truncnorm.mean(*((wall - x.numpy() - 5) / 0.5 for wall in (-1, 1)), x.numpy() + 5, 0.5))

    def error(estimator: EnergyEstimator, guide: Tensor | None = None) -> float:
        estimate = estimator(narrow, x, sigma, Box(), guide=guide)
        return (estimate.denoised - exact).square().mean().sqrt().item()

    assert error(GuidedDefensive(32), exact) < error(Importance(32)) / 2


@pytest.mark.parametrize("name", ["sigma_data", "clip"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_bad_widths_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}"):
        GuidedDefensive(**{name: value})


def test_target_score_is_the_papers_on_the_line(wells: LogProb) -> None:
    """Its score is the gradient in x of log mean exp(log_prob(x + sigma eps)) at fixed eps."""
    x, sigma, num = spread(10, 2, 0.2), torch.tensor(0.2, dtype=torch.float64), 16
    points = Unbounded().propose(x, sigma, num, seeded()).points
    moved = x.clone().requires_grad_()
    (paper,) = torch.autograd.grad(torch.logsumexp(wells(moved + (points - x)), 0).sum(), moved)
    estimate = TargetScore(num_samples=num)(wells, x, sigma, Unbounded(), seeded())
    torch.testing.assert_close(score(estimate.denoised, x, sigma), paper)


def test_target_score_clips_the_norm(support: Support, wells: LogProb) -> None:
    x, sigma, limit = spread(200, 2, 0.1), torch.tensor(0.1, dtype=torch.float64), 5.0
    free, clipped = (
        score(TargetScore(8, max_norm)(wells, x, sigma, support, seeded()).denoised, x, sigma)
        for max_norm in (None, limit)
    )
    length = free.norm(dim=-1, keepdim=True)
    assert (length > limit).any()
    assert (length < limit).any()
    torch.testing.assert_close(clipped, torch.where(length > limit, free * limit / length, free))


@pytest.mark.parametrize("max_norm", [0.0, -1.0, float("nan")])
def test_bad_norms_are_refused(max_norm: float) -> None:
    with pytest.raises(ValueError, match=f"max_norm={max_norm}"):
        TargetScore(max_norm=max_norm)


def test_target_score_is_finite_at_the_end_of_the_random_numbers(wells: LogProb) -> None:
    """With this seed one of the proposals' random numbers is an exact 0, as one in 2^24 is."""
    x = torch.full((20_000, 1), 0.5)
    estimate = TargetScore(num_samples=2)(wells, x, torch.tensor(0.03), Box(), seeded(146))
    assert torch.isfinite(estimate.denoised).all()
