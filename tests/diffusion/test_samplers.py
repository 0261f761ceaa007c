from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import ndtri
from scipy.stats import kstest
from torch import Tensor

from dqs_lightning.diffusion import Box, Geometric, Karras, LogProb, NoiseSchedule, Sampler, Support, Tanh, Unbounded
from dqs_lightning.registry import components

SAMPLERS = list(components(Sampler).values())
SUPPORTS = list(components(Support).values())
WIDE = [Geometric(0.01, 10.0), Karras(0.01, 10.0)]
"""Schedules whose largest noise hides the target and whose smallest does not blur it."""

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


def shrink(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact denoiser of N(0, 0.5^2)."""
    return x * 0.25 / (0.25 + sigma**2)


def quadrature_denoiser(log_prob: LogProb) -> Callable[[Tensor, Tensor], Tensor]:
    """E[a | x] of exp(log_prob) on [-1, 1]."""
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 500 - 1
    prior = log_prob(grid.unsqueeze(1))

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        weight = torch.softmax(prior - (x - grid).square() / (2 * sigma**2), -1)
        return (weight @ grid).unsqueeze(-1)

    return denoise


def test_all_samplers_are_found() -> None:
    assert {"Ancestral", "EulerMaruyama"} <= {cls.__name__ for cls in SAMPLERS}


# The law of the samples


def test_converges_to_the_target(cls: type[Sampler], wide: NoiseSchedule, mixture, wasserstein: Wasserstein) -> None:
    like, target = torch.empty(8000, 1, dtype=torch.float64), mixture.quantiles(8000)
    few, many = (
        wasserstein(cls(steps=steps).sample(mixture.denoise, wide, Unbounded(), like), target) for steps in (10, 200)
    )
    assert many < 0.03
    assert many < few / 2


def test_noise_free_steps_carry_noise_to_the_target(
    cls: type[Sampler], wide: NoiseSchedule, mixture, wasserstein: Wasserstein
) -> None:
    """The probability-flow ODE has the marginals of the SDE: quantiles of the noise become those of the target."""
    num = 2000
    noise = wide.sigma_max * torch.from_numpy(ndtri((np.arange(num) + 0.5) / num)).unsqueeze(1)
    few, many = (
        wasserstein(cls(steps=steps).integrate(mixture.denoise, wide, noise, None), mixture.quantiles(num))
        for steps in (10, 400)
    )
    assert many < 0.03
    assert many < few


def test_converges_on_a_box_with_its_optimum_at_a_wall(
    cls: type[Sampler], wide: NoiseSchedule, wasserstein: Wasserstein
) -> None:
    slope, num = 3.0, 1000
    denoise = quadrature_denoiser(lambda a: slope * a.sum(-1))
    samples = cls(steps=100).sample(denoise, wide, Box(), torch.empty(num, 1, dtype=torch.float64))
    assert samples.abs().max() <= 1
    ranks = (np.arange(num) + 0.5) / num
    quantiles = np.log(np.exp(-slope) + ranks * 2 * np.sinh(slope)) / slope
    assert wasserstein(samples, quantiles) < 0.05


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_no_sample_is_outside_whatever_the_denoiser(cls: type[Sampler], deterministic: bool, steps: int) -> None:
    for support in (Box(-2.0, 0.7), Tanh(-2.0, 0.7)):
        for denoise in (lambda x, sigma: 10 * x + 5, lambda x, sigma: -50 + 0 * x):
            samples = cls(steps=steps).sample(
                denoise, Geometric(), support, torch.empty(500, 2), deterministic=deterministic
            )
            assert ((samples >= -2.0) & (samples <= 0.7)).all()


def test_noise_free_samples_follow_the_flow(cls: type[Sampler]) -> None:
    """From x = 0, the flow to N(1, 0.5^2) ends at 1 - 0.5 / sqrt(0.5^2 + sigma_max^2)."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return (0.25 * x + sigma**2) / (0.25 + sigma**2)

    like = torch.empty(1, 1, dtype=torch.float64)
    sample = cls(steps=500).sample(denoise, Geometric(0.01, 1.0), Unbounded(), like, deterministic=True)
    assert sample.item() == pytest.approx(1 - 0.5 / 1.25**0.5, abs=0.02)


def test_starts_from_the_largest_noise(cls: type[Sampler]) -> None:
    seen: list[Tensor] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(x)
        return shrink(x, sigma)

    cls(steps=3).sample(denoise, Geometric(0.01, 10.0), Unbounded(), torch.empty(4000, 2))
    assert kstest(seen[0].flatten().numpy(), "norm", args=(0, 10.0)).pvalue > 1e-3


def test_denoised_means_are_projected(cls: type[Sampler]) -> None:
    """A denoiser that points outside serves as one that points at the wall."""
    schedule, like = Geometric(), torch.empty(200, 2)
    out, wall = (
        cls(steps=6).sample(lambda x, sigma: value + 0 * x, schedule, Box(), like, torch.Generator().manual_seed(1))  # noqa: B023
        for value in (25.0, 1.0)
    )
    torch.testing.assert_close(out, wall)


def test_evaluates_the_denoiser_once_a_step(cls: type[Sampler], support: Support) -> None:
    for steps in (1, 2, 7):
        for deterministic in (False, True):
            levels: list[float] = []

            def denoise(x: Tensor, sigma: Tensor) -> Tensor:
                levels.append(float(sigma))  # noqa: B023
                return shrink(x, sigma)

            cls(steps=steps).sample(denoise, Geometric(), support, torch.empty(3, 2), deterministic=deterministic)
            assert len(levels) == steps
            assert levels == sorted(levels, reverse=True)
            assert levels[0] == pytest.approx(2.0)
            assert levels[-1] > 0


# Randomness and shapes


def test_deterministic_draws_nothing(cls: type[Sampler], support: Support) -> None:
    like, before = torch.empty(5, 2), torch.get_rng_state()
    generator = torch.Generator().manual_seed(1)
    start = generator.get_state()
    first = cls(steps=5).sample(lambda x, sigma: shrink(x, sigma) + 0.3, Geometric(), support, like, generator, True)
    second = cls(steps=5).sample(lambda x, sigma: shrink(x, sigma) + 0.3, Geometric(), support, like, None, True)
    assert torch.equal(first, second)
    assert torch.equal(first, first[:1].expand_as(first))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(start, generator.get_state())


def test_follows_its_generator(cls: type[Sampler], support: Support) -> None:
    like, before = torch.empty(16, 2), torch.get_rng_state()
    first, again, other = (
        cls(steps=5).sample(shrink, Geometric(), support, like, torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_rows_differ(cls: type[Sampler], support: Support) -> None:
    samples = cls(steps=5).sample(shrink, Geometric(), support, torch.empty(100, 2))
    assert len(samples.unique(dim=0)) > 90


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(2,), (3, 2), (4, 3, 2)], ids=str)
@pytest.mark.parametrize("steps", [1, 4])
def test_shape_and_dtype_are_those_of_like(
    cls: type[Sampler], support: Support, shape: tuple[int, ...], dtype: torch.dtype, steps: int
) -> None:
    samples = cls(steps=steps).sample(shrink, Geometric(), support, torch.full(shape, torch.nan, dtype=dtype))
    assert samples.shape == shape
    assert samples.dtype == dtype
    assert torch.isfinite(samples).all()


def test_no_steps_are_refused(cls: type[Sampler]) -> None:
    with pytest.raises(ValueError, match="steps=0"):
        cls(steps=0)
