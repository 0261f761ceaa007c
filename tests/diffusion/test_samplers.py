import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import integrate, seeded
from scipy.special import ndtri
from scipy.stats import kstest
from torch import Tensor

from dqs_lightning.diffusion import (
    Ancestral,
    Box,
    Denoise,
    DPMSolverSDE,
    Geometric,
    Karras,
    LogProb,
    MomentMatched,
    Moments,
    NoiseSchedule,
    ProbabilityFlow,
    Sampler,
    Support,
    Tanh,
    Unbounded,
)
from dqs_lightning.registry import components

SAMPLERS = list(components(Sampler).values())
SUPPORTS = list(components(Support).values())
WIDE = [Geometric(0.01, 10.0), Karras(0.01, 10.0)]
"""Noise schedules from far above to far below the standard deviation of the targets."""

Wasserstein = Callable[[Tensor, np.ndarray], float]


@pytest.fixture(params=SAMPLERS, ids=lambda cls: cls.__name__)
def cls(request: pytest.FixtureRequest) -> type[Sampler]:
    return request.param


@pytest.fixture(params=WIDE, ids=lambda schedule: type(schedule).__name__)
def wide(request: pytest.FixtureRequest) -> NoiseSchedule:
    return request.param


@pytest.fixture(params=SUPPORTS, ids=lambda cls: cls.__name__)
def support(request: pytest.FixtureRequest) -> Support:
    return request.param()


def shrink(x: Tensor, sigma: Tensor) -> Moments:
    """The exact moments for N(0, 0.5^2)."""
    share = 0.25 / (0.25 + sigma**2)
    return Moments(share * x, (share * sigma**2).expand_as(x))


def without_variance(mean: Callable[[Tensor, Tensor], Tensor]) -> Denoise:
    """Returns a denoiser whose variance is 0."""
    return lambda x, sigma: Moments(mean(x, sigma), torch.zeros_like(x))


def quadrature_denoiser(log_prob: LogProb) -> Denoise:
    """Returns the moments of p(a | x) for exp(log_prob) on [-1, 1]."""
    grid = (torch.arange(400, dtype=torch.float64) + 0.5) / 200 - 1
    prior = log_prob(grid.unsqueeze(1))

    def denoise(x: Tensor, sigma: Tensor) -> Moments:
        weight = torch.softmax(prior - (x - grid).square() / (2 * sigma**2), -1)
        mean, square = (weight @ torch.stack([grid, grid**2], 1)).chunk(2, -1)
        return Moments(mean, (square - mean**2).clamp_min(0))

    return denoise


def test_all_samplers_are_found() -> None:
    assert {"Ancestral", "DPMSolverSDE", "EulerMaruyama", "MomentMatched", "ProbabilityFlow"} <= {
        cls.__name__ for cls in SAMPLERS
    }


def test_the_mixtures_moments_equal_quadrature(mixture) -> None:
    """The mixture's moments in closed form, with which other tests compare, equal quadrature."""
    x, sigma = torch.linspace(-2, 2, 9, dtype=torch.float64).unsqueeze(1), torch.tensor(0.4, dtype=torch.float64)
    grid = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    weight = torch.softmax(mixture.log_prob(grid.unsqueeze(1)) - (x - grid).square() / (2 * sigma**2), -1)
    mean = (weight @ grid).unsqueeze(-1)
    exact = Moments(mean, (weight * (grid - mean).square()).sum(-1, keepdim=True))
    torch.testing.assert_close(mixture.denoise(x, sigma), exact)


# The distribution of the samples


def test_converges_to_the_target(cls: type[Sampler], wide: NoiseSchedule, mixture, wasserstein: Wasserstein) -> None:
    like, target = torch.empty(8000, 1, dtype=torch.float64), mixture.quantiles(8000)
    few, many = (
        wasserstein(cls(steps=steps).trajectory(mixture.denoise, wide, Unbounded(), like).action, target)
        for steps in (4, 200)
    )
    assert many < 0.03
    assert many < few / 2


def test_noise_free_steps_map_noise_to_the_target(
    cls: type[Sampler], wide: NoiseSchedule, mixture, wasserstein: Wasserstein
) -> None:
    """Quantiles of the noise become those of the target, since the probability-flow ODE has the SDE's marginals."""
    num = 2000
    noise = wide.sigma_max * torch.from_numpy(ndtri((np.arange(num) + 0.5) / num)).unsqueeze(1)
    few, many = (
        wasserstein(integrate(cls(steps=steps), mixture.denoise, wide, noise, None), mixture.quantiles(num))
        for steps in (10, 400)
    )
    assert many < 0.03
    assert many < few


def test_converges_on_a_box_with_its_optimum_at_a_bound(
    cls: type[Sampler], wide: NoiseSchedule, wasserstein: Wasserstein
) -> None:
    slope, num = 3.0, 500
    denoise = quadrature_denoiser(lambda a: slope * a.sum(-1))
    samples = cls(steps=60).trajectory(denoise, wide, Box(), torch.empty(num, 1, dtype=torch.float64)).action
    assert samples.abs().max() <= 1
    ranks = (np.arange(num) + 0.5) / num
    quantiles = np.log(np.exp(-slope) + ranks * 2 * np.sinh(slope)) / slope
    assert wasserstein(samples, quantiles) < 0.05


def test_moment_matched_steps_preserve_the_masses_of_modes(
    wide: NoiseSchedule, mixture, wasserstein: Wasserstein
) -> None:
    """Ten steps give each mode its mass, while those of Ancestral give too much to the larger one."""
    like, target = torch.empty(8000, 1, dtype=torch.float64), mixture.quantiles(8000)
    mean_only, matched = (
        method(steps=10).trajectory(mixture.denoise, wide, Unbounded(), like).action
        for method in (Ancestral, MomentMatched)
    )
    assert wasserstein(matched, target) < wasserstein(mean_only, target) / 2
    mean_only_error, matched_error = (
        abs((samples < 0).double().mean().item() - 0.3) for samples in (mean_only, matched)
    )
    assert matched_error < 0.025 < mean_only_error


def test_moment_matched_steps_of_a_normal_distribution_are_exact() -> None:
    """The standard deviation is exact with any number of steps, while that of Ancestral is too small."""

    def standard_deviation(sampler: Sampler) -> float:
        start = 10 * torch.randn(50_000, 1, dtype=torch.float64)
        schedule = Geometric(0.01, 10.0)
        return integrate(sampler, shrink, schedule, start, torch.randn_like).std().item()

    for steps in (2, 5, 20):
        assert standard_deviation(MomentMatched(steps, max_ratio=math.inf)) == pytest.approx(0.5, rel=0.02)
    assert standard_deviation(Ancestral(2)) < 0.1


@pytest.mark.parametrize("deterministic", [False, True])
def test_moment_matched_without_variance_is_ancestral(
    wide: NoiseSchedule, support: Support, deterministic: bool
) -> None:
    """MomentMatched with variance 0 equals Ancestral at the same noise levels."""
    like, denoise = torch.empty(50, 2, dtype=torch.float64), without_variance(lambda x, sigma: shrink(x, sigma).mean)
    ancestral, matched = (
        sampler.trajectory(denoise, wide, support, like, None if deterministic else seeded(1)).action
        for sampler in (Ancestral(6), MomentMatched(6, max_ratio=math.inf))
    )
    torch.testing.assert_close(matched, ancestral)


@pytest.mark.parametrize("steps", [1, 2, 5, 8, 12, 40])
def test_moment_matched_steps_have_a_maximum_ratio(steps: int) -> None:
    """Steps divide sigma by equal ratios of at most 2.5, and reach sigma_min if they are enough."""
    schedule, like = Geometric(0.01, 10.0), torch.empty(1, 1, dtype=torch.float64)
    levels = MomentMatched(steps, max_ratio=2.5).trajectory(shrink, schedule, Unbounded(), like).sigma
    ratios = levels[:-1] / levels[1:]
    assert levels[0].item() == pytest.approx(10.0)
    assert levels[-1].item() == pytest.approx(max(0.01, 10.0 * 2.5 ** (1 - steps)))
    torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios))
    assert (ratios <= 2.5 + 1e-9).all()


@pytest.mark.parametrize("max_ratio", [1.0, 0.5, -2.0, float("nan")])
def test_bad_ratios_are_refused(max_ratio: float) -> None:
    with pytest.raises(ValueError, match=f"max_ratio={max_ratio}"):
        MomentMatched(max_ratio=max_ratio)


@pytest.mark.parametrize("second_order", [DPMSolverSDE, ProbabilityFlow])
def test_order_on_the_flow_of_a_normal_distribution(second_order: type[Sampler], wide: NoiseSchedule) -> None:
    """Twice the steps give half the error at first order, and a quarter of it at second order.

    In the exact flow x - 1 is proportional to sqrt(0.5^2 + sigma^2).
    """

    def denoise(x: Tensor, sigma: Tensor) -> Moments:
        mean, variance = shrink(x - 1, sigma)
        return Moments(1 + mean, variance)

    start = torch.tensor([[12.0], [-7.0]], dtype=torch.float64)
    low = torch.tensor(wide.sigma_min, dtype=torch.float64)
    exact = denoise(1 + (start - 1) * ((0.25 + low**2) / (0.25 + wide.sigma_max**2)).sqrt(), low).mean

    def error(method: type[Sampler], steps: int) -> float:
        return (integrate(method(steps), denoise, wide, start, None) - exact).abs().max().item()

    assert error(second_order, 40) < error(second_order, 20) / 3
    assert error(second_order, 80) < error(second_order, 40) / 3.5
    assert error(Ancestral, 40) / 2.3 < error(Ancestral, 80) < error(Ancestral, 40) / 1.7
    assert error(second_order, 20) < error(Ancestral, 20) / 4


@pytest.mark.parametrize("power", [1, 2], ids=["flow", "noise"])
def test_second_order_accounts_for_uneven_steps(wide: NoiseSchedule, power: int) -> None:
    """A mean linear in log sigma is extrapolated exactly to a step's middle, for any length of the previous step."""
    evaluated: list[tuple[Tensor, Tensor]] = []

    def denoise(x: Tensor, sigma: Tensor) -> Moments:
        evaluated.append((x, sigma))
        return Moments(3 * torch.log(sigma).expand_as(x), torch.zeros_like(x))

    start = torch.randn(4, 1, dtype=torch.float64)
    integrate(DPMSolverSDE(6), denoise, wide, start, None if power == 1 else torch.zeros_like)
    for (x, sigma), (x_next, sigma_next) in pairwise(evaluated[1:]):
        middle, share = 3 * torch.log(sigma * sigma_next) / 2, (sigma_next / sigma) ** power
        torch.testing.assert_close(x_next, middle + share * (x - middle))


def test_second_order_needs_fewer_steps_with_noise(wide: NoiseSchedule, mixture, wasserstein: Wasserstein) -> None:
    like, target = torch.empty(8000, 1, dtype=torch.float64), mixture.quantiles(8000)
    first, second = (
        wasserstein(method(20).trajectory(mixture.denoise, wide, Unbounded(), like).action, target)
        for method in (Ancestral, DPMSolverSDE)
    )
    assert second < first / 2


def test_probability_flow_is_random_in_its_start_only() -> None:
    def noise(like: Tensor) -> Tensor:
        raise AssertionError("noise was drawn")

    start = torch.randn(5, 2)
    with_noise, without = (
        integrate(ProbabilityFlow(6), shrink, Geometric(), start, source) for source in (noise, None)
    )
    assert torch.equal(with_noise, without)
    assert torch.equal(without, integrate(DPMSolverSDE(6), shrink, Geometric(), start, None))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_samples_are_within_the_bounds_for_any_denoiser(cls: type[Sampler], deterministic: bool, steps: int) -> None:
    for support in (Box(-2.0, 0.7), Tanh(-2.0, 0.7)):
        for denoise in (
            without_variance(lambda x, sigma: 10 * x + 5),
            lambda x, sigma: Moments(-50 + 0 * x, 9 + 0 * x),
        ):
            noise = None if deterministic else torch.randn_like
            samples = cls(steps=steps).trajectory(denoise, Geometric(), support, torch.empty(500, 2), noise).action
            assert ((samples >= -2.0) & (samples <= 0.7)).all()


def test_noise_free_samples_follow_the_flow(cls: type[Sampler]) -> None:
    """From x = 0, the flow to N(1, 0.5^2) ends at 1 - 0.5 / sqrt(0.5^2 + sigma_max^2)."""

    def denoise(x: Tensor, sigma: Tensor) -> Moments:
        mean, variance = shrink(x - 1, sigma)
        return Moments(1 + mean, variance)

    like = torch.empty(1, 1, dtype=torch.float64)
    sample = cls(steps=500).trajectory(denoise, Geometric(0.01, 1.0), Unbounded(), like, None).action
    assert sample.item() == pytest.approx(1 - 0.5 / 1.25**0.5, abs=0.02)


def test_starts_from_the_largest_noise(cls: type[Sampler]) -> None:
    visited: list[Tensor] = []

    def denoise(x: Tensor, sigma: Tensor) -> Moments:
        visited.append(x)
        return shrink(x, sigma)

    cls(steps=3).trajectory(denoise, Geometric(0.01, 10.0), Unbounded(), torch.empty(4000, 2))
    assert kstest(visited[0].flatten().numpy(), "norm", args=(0, 10.0)).pvalue > 1e-3


def test_denoised_means_are_projected(cls: type[Sampler]) -> None:
    """A denoiser with means outside the box gives the samples of one with means at the bound."""
    schedule, like = Geometric(), torch.empty(200, 2)
    outside, at_bound = (
        cls(steps=6).trajectory(denoise, schedule, Box(), like, seeded(1)).action
        for denoise in (without_variance(lambda x, sigma: 25 + 0 * x), without_variance(lambda x, sigma: 1 + 0 * x))
    )
    torch.testing.assert_close(outside, at_bound)


def test_evaluates_the_denoiser_once_per_step(cls: type[Sampler], support: Support) -> None:
    for steps in (1, 2, 7):
        for deterministic in (False, True):
            levels: list[float] = []

            def denoise(x: Tensor, sigma: Tensor) -> Moments:
                levels.append(float(sigma))  # noqa: B023
                return shrink(x, sigma)

            noise = None if deterministic else torch.randn_like
            cls(steps=steps).trajectory(denoise, Geometric(), support, torch.empty(3, 2), noise)
            assert len(levels) == steps
            assert levels == sorted(levels, reverse=True)
            assert levels[0] == pytest.approx(2.0)
            assert levels[-1] > 0


# Trajectories


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("shape", [(5, 2), (3, 5, 2)], ids=str)
def test_trajectory_contains_the_evaluations_of_the_denoiser(
    cls: type[Sampler], support: Support, steps: int, shape: tuple[int, ...]
) -> None:
    visited: list[tuple[Tensor, Tensor]] = []

    def denoise(x: Tensor, sigma: Tensor) -> Moments:
        visited.append((x.clone(), sigma.clone()))
        mean, variance = shrink(x, sigma)
        return Moments(3 * mean, variance)

    found = cls(steps).trajectory(denoise, Geometric(), support, torch.empty(shape, dtype=torch.float64), seeded(1))
    assert torch.equal(found.action, support.to_action(found.end))
    assert (found.x.shape, found.mean.shape, found.sigma.shape) == ((steps, *shape), (steps, *shape), (steps,))
    for x, sigma, at in zip(found.x, found.sigma, visited, strict=True):
        assert torch.equal(x, at[0]) and torch.equal(sigma, at[1])
    for x, sigma, mean in zip(found.x, found.sigma, found.mean, strict=True):
        assert torch.equal(mean, support.project(3 * shrink(x, sigma).mean))
    assert (found.sigma.diff() < 0).all()


# Randomness and shapes


def test_deterministic_sampling_draws_no_random_numbers(cls: type[Sampler], support: Support) -> None:
    like, before = torch.empty(5, 2), torch.get_rng_state()

    def denoise(x: Tensor, sigma: Tensor) -> Moments:
        mean, variance = shrink(x, sigma)
        return Moments(mean + 0.3, variance)

    first, second = (cls(steps=5).trajectory(denoise, Geometric(), support, like, None).action for _ in "ab")
    assert torch.equal(first, second)
    assert torch.equal(first, first[:1].expand_as(first))
    assert torch.equal(before, torch.get_rng_state())


def test_follows_its_source_of_noise(cls: type[Sampler], support: Support) -> None:
    like, before = torch.empty(16, 2), torch.get_rng_state()
    first, again, other = (
        cls(steps=5).trajectory(shrink, Geometric(), support, like, seeded(seed)).action for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_rows_differ(cls: type[Sampler], support: Support) -> None:
    samples = cls(steps=5).trajectory(shrink, Geometric(), support, torch.empty(100, 2)).action
    assert len(samples.unique(dim=0)) > 90


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(2,), (3, 2), (4, 3, 2)], ids=str)
@pytest.mark.parametrize("steps", [1, 4])
def test_shape_and_dtype_are_those_of_like(
    cls: type[Sampler], support: Support, shape: tuple[int, ...], dtype: torch.dtype, steps: int
) -> None:
    like = torch.full(shape, torch.nan, dtype=dtype)
    samples = cls(steps=steps).trajectory(shrink, Geometric(), support, like).action
    assert samples.shape == shape
    assert samples.dtype == dtype
    assert torch.isfinite(samples).all()


def test_zero_steps_are_refused(cls: type[Sampler]) -> None:
    with pytest.raises(ValueError, match="steps=0"):
        cls(steps=0)
