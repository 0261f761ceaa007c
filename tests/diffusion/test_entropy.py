import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from dqs_lightning.diffusion import (
    MLP,
    Ancestral,
    Box,
    Denoiser,
    Geometric,
    MomentMatched,
    ProbabilityFlow,
    Tanh,
    Unbounded,
)
from dqs_lightning.diffusion.entropy import entropy, log_prob, trajectory_entropy
from dqs_lightning.diffusion.samplers import Moments, Trajectory
from dqs_lightning.diffusion.support import Support

SCHEDULE = Geometric()


class Distribution:
    """Mixture over k of prod_i exp(f_ki(latent_i)) on a grid, with moments, densities and entropy by quadrature."""

    def __init__(self, f: Callable[[Tensor], Tensor], weights: list[float], low: float = -1, high: float = 1) -> None:
        """f: grid [G] -> [K, d, G]."""
        cells = 500
        self.h = (high - low) / cells
        self.grid = low + self.h * (torch.arange(cells, dtype=torch.float64) + 0.5)
        self.f = torch.log_softmax(f(self.grid), -1)
        self.log_weights = torch.log_softmax(torch.tensor(weights, dtype=torch.float64).log(), 0)
        self.dim = self.f.shape[1]

    def joint(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.f - ((x[..., None, :, None] - self.grid) / sigma[..., None, None]).square() / 2

    def denoise(self, x: Tensor, sigma: Tensor) -> Moments:
        dtype = x.dtype
        joint = self.joint(x.double(), sigma.double().reshape(-1) if sigma.ndim == 0 else sigma.double())
        share = torch.softmax(self.log_weights + torch.logsumexp(joint, -1).sum(-1), -1).unsqueeze(-1)
        weight = torch.softmax(joint, -1)
        mean, square = ((share * (weight @ power)).sum(-2) for power in (self.grid, self.grid.square()))
        return Moments(mean.to(dtype), (square - mean.square()).clamp_min(0).to(dtype))

    def noised(self, x: Tensor, sigma: float) -> Tensor:
        """log density of the latent with noise, [B, d] -> [B]."""
        each = torch.logsumexp(self.joint(x, torch.tensor([sigma])), -1) - math.log(sigma * math.sqrt(2 * math.pi))
        return torch.logsumexp(self.log_weights + each.sum(-1), -1)

    def clean(self, cell: Tensor) -> Tensor:
        """log density of the latent at the center of cells [B, d] -> [B]."""
        each = torch.stack([self.f[:, i, cell[:, i]] for i in range(self.dim)]).sum(0).T
        return torch.logsumexp(self.log_weights + each, -1) - self.dim * math.log(self.h)

    def entropy(self) -> float:
        """Entropy of the latent."""
        cells = torch.cartesian_prod(*[torch.arange(len(self.grid))] * self.dim).reshape(-1, self.dim)
        log_p = self.clean(cells)
        return -float((log_p.exp() * log_p).sum() * self.h**self.dim)

    def draw(self, *shape: int) -> Tensor:
        """Draws latents [*shape, d]."""
        num = math.prod(shape)
        which = torch.multinomial(self.log_weights.exp(), num, replacement=True)
        columns = [torch.multinomial(self.f[which, i].exp(), 1) for i in range(self.dim)]
        at = self.grid[torch.cat(columns, -1)]
        return (at + self.h * (torch.rand_like(at) - 0.5)).reshape(*shape, self.dim)


def normal(*components: list[tuple[float, float]]) -> Callable[[Tensor], Tensor]:
    """Each component a list of (mean, std), one for each dimension."""
    return lambda g: torch.stack([torch.stack([-((g - m) / s).square() / 2 for m, s in each]) for each in components])


def exponential(*components: list[float]) -> Callable[[Tensor], Tensor]:
    return lambda g: torch.stack([torch.stack([k * g for k in each]) for each in components])


DISTRIBUTIONS: dict[str, tuple[Distribution, Support]] = {
    "uniform": (Distribution(exponential([0.0]), [1]), Box()),
    "corner": (Distribution(exponential([10.0]), [1]), Box()),
    "sharp corner": (Distribution(exponential([30.0]), [1]), Box()),
    "half a normal": (Distribution(normal([(1.0, 0.1)]), [1]), Box()),
    "narrow": (Distribution(normal([(0.3, 0.02)]), [1]), Box()),
    "two modes": (Distribution(normal([(-0.6, 0.15)], [(0.5, 0.15)]), [0.3, 0.7], -2, 2), Unbounded()),
    "off center": (Distribution(normal([(0.7, 0.1), (-0.6, 0.1)]), [1]), Box()),
    "two modes 2d": (Distribution(normal([(-0.5, 0.1), (-0.5, 0.3)], [(0.5, 0.1), (0.5, 0.1)]), [0.3, 0.7]), Box()),
    "opposite corners": (Distribution(exponential([-20.0, -20.0], [20.0, 20.0]), [0.5, 0.5]), Box()),
}
each_distribution = pytest.mark.parametrize("name", DISTRIBUTIONS)


def shrink(x: Tensor, sigma: Tensor) -> Moments:
    """The exact denoiser of N(0, 0.5^2)."""
    return Moments(x * 0.25 / (0.25 + sigma**2), torch.full_like(x, torch.nan))


# Entropy


@each_distribution
def test_entropy_equals_quadrature(name: str) -> None:
    distribution, support = DISTRIBUTIONS[name]
    answer = entropy(distribution.denoise, SCHEDULE, support, distribution.draw(64, 12))
    assert answer.shape == (12,)
    assert float(answer.mean()) == pytest.approx(distribution.entropy(), abs=0.11)
    assert float(answer.std()) < 0.35


@pytest.mark.parametrize("std", [3.0, 0.5, 0.1, 0.03, 0.01])
def test_entropy_of_a_normal(std: float) -> None:
    def denoise(x: Tensor, sigma: Tensor) -> Moments:
        return Moments(2 + (x - 2) * std**2 / (std**2 + sigma**2), x)

    samples = 2 + std * torch.randn(4000, 3, dtype=torch.float64)
    answer = float(entropy(denoise, SCHEDULE, Unbounded(), samples))
    assert answer == pytest.approx(3 * (0.5 * math.log(2 * math.pi * math.e) + math.log(std)), abs=0.05)


def test_entropy_includes_correlations_between_dimensions() -> None:
    """The entropy of N(0, C) in six dimensions with variances 1 and covariances 0.9 is the exact one."""
    covariance = 0.9 + 0.1 * torch.eye(6, dtype=torch.float64)

    def denoise(x: Tensor, sigma: Tensor) -> Moments:
        gain = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(6, dtype=torch.float64))
        return Moments(x @ gain, x)

    samples = torch.randn(4000, 6, dtype=torch.float64) @ torch.linalg.cholesky(covariance).T
    exact = 3 * math.log(2 * math.pi * math.e) + 0.5 * float(torch.logdet(covariance))
    assert float(entropy(denoise, SCHEDULE, Unbounded(), samples)) == pytest.approx(exact, abs=0.1)


def test_entropy_includes_the_term_of_the_bounds() -> None:
    """The entropy of the uniform distribution on the box is log 2; without the term of the bounds 0.013 is missing."""
    distribution, support = DISTRIBUTIONS["uniform"]
    schedule = Geometric(0.1, 2.0)
    samples = torch.linspace(-1, 1, 8001, dtype=torch.float64)[1::2].unsqueeze(1)
    assert float(entropy(distribution.denoise, schedule, support, samples)) == pytest.approx(math.log(2), abs=0.02)


def test_entropy_of_few_samples_has_a_small_bias() -> None:
    distribution, support = DISTRIBUTIONS["two modes"]
    assert float(entropy(distribution.denoise, SCHEDULE, support, distribution.draw(8, 64)).mean()) == pytest.approx(
        distribution.entropy(), abs=0.1
    )


# Entropy from a trajectory


@pytest.mark.parametrize("name", ["uniform", "corner", "narrow", "two modes", "two modes 2d"])
def test_trajectory_entropy_equals_quadrature(name: str) -> None:
    distribution, support = DISTRIBUTIONS[name]
    trajectory = MomentMatched(12).trajectory(
        distribution.denoise, SCHEDULE, support, torch.empty(512, 3, distribution.dim, dtype=torch.float64)
    )
    answer = trajectory_entropy(trajectory, support)
    assert answer.shape == (3,)
    assert float(answer.mean()) == pytest.approx(distribution.entropy(), abs=0.2)


def test_trajectory_entropy_without_noise() -> None:
    trajectory = ProbabilityFlow(30).trajectory(
        shrink, SCHEDULE, Unbounded(), torch.empty(4000, 1, 1, dtype=torch.float64)
    )
    exact = 0.5 * math.log(2 * math.pi * math.e * 0.25)
    assert float(trajectory_entropy(trajectory, Unbounded(), paired=False)) == pytest.approx(exact, abs=0.2)
    assert float(trajectory_entropy(trajectory, Unbounded())) < exact - 0.5


def test_trajectory_entropy_of_noised_samples() -> None:
    distribution, support = DISTRIBUTIONS["corner"]
    clean, sigma = distribution.draw(256, 4), SCHEDULE.grid(32, torch.empty(0, dtype=torch.float64))[:-1]
    steps = torch.sqrt(torch.diff(sigma.flip(0).square(), prepend=torch.zeros(1, dtype=torch.float64)))
    walk = torch.cumsum(steps.reshape(-1, 1, 1, 1) * torch.randn(32, *clean.shape, dtype=torch.float64), 0).flip(0)
    x = clean + walk
    mean = torch.stack([distribution.denoise(at, level).mean for at, level in zip(x, sigma, strict=True)])
    expected = entropy(distribution.denoise, SCHEDULE, support, clean)
    answer = trajectory_entropy(Trajectory(clean, clean, x, sigma, mean), support)
    assert float(answer.mean()) == pytest.approx(float(expected.mean()), abs=0.12)


def test_trajectory_entropy_has_no_device_to_host_sync() -> None:
    """Meta tensors have no values, so a sync with the CPU fails."""
    like = torch.empty(7, 5, 3, 2, device="meta")
    for support in (Unbounded(), Box(), Tanh()):
        trajectory = Trajectory(like[0], like[0], like, torch.empty(7, device="meta"), like)
        assert trajectory_entropy(trajectory, support).shape == (3,)


# Density


@each_distribution
def test_log_prob_equals_quadrature(name: str) -> None:
    distribution, support = DISTRIBUTIONS[name]
    cell = (
        ((distribution.draw(40) - distribution.grid[0]) / distribution.h)
        .round()
        .long()
        .clamp(0, len(distribution.grid) - 1)
    )
    at = distribution.grid[cell]
    answer = log_prob(distribution.denoise, SCHEDULE, support, at)
    mass = torch.ones((), dtype=torch.float64)
    if isinstance(support, Box):
        mass = (torch.special.ndtr((1 - at) / 0.03) - torch.special.ndtr((-1 - at) / 0.03)).prod(-1)
    error = answer - (distribution.noised(at, 0.03) - torch.log(mass))
    assert error.abs().max() < 0.08
    assert error.mean().abs() < (0.045 if name == "opposite corners" else 0.01)
    if name in ("uniform", "two modes", "off center"):
        assert (answer - distribution.clean(cell)).mean().abs() < 0.05
    if name == "uniform":
        assert (answer - distribution.clean(cell)).abs().max() < 0.01


@pytest.mark.parametrize("name", ["two modes", "two modes 2d"])
def test_log_prob_against_an_ode_library(name: str) -> None:
    distribution, _ = DISTRIBUTIONS[name]
    for at in distribution.draw(2):
        inner = at.clamp(-0.8, 0.8).unsqueeze(0)

        def derivative(u: float, y: np.ndarray) -> np.ndarray:
            x = torch.from_numpy(y[: distribution.dim])
            sigma = torch.tensor(math.exp(u), dtype=torch.float64)
            mean = distribution.denoise(x, sigma).mean
            jacobian = torch.autograd.functional.jacobian(lambda z: distribution.denoise(z, sigma).mean, x)
            return np.append((x - mean).numpy(), distribution.dim - float(torch.trace(jacobian)))

        low, high = math.log(0.03), math.log(2)
        start = np.append(inner[0].numpy(), 0.0)
        end = solve_ivp(derivative, (low, high), start, rtol=1e-6, atol=1e-8).y[:, -1]
        exact = distribution.noised(torch.from_numpy(end[: distribution.dim]).unsqueeze(0), 2.0) + end[-1]
        torch.testing.assert_close(exact, distribution.noised(inner, 0.03), atol=1e-3, rtol=0)
        # With a large sigma_max the normal distribution at the end is exact.
        wide = Geometric(0.03, 8.0)
        ours = log_prob(distribution.denoise, wide, Unbounded(), inner, steps=60)
        torch.testing.assert_close(ours, exact, atol=1e-3, rtol=0)


@pytest.mark.parametrize("std", [0.5, 0.05])
def test_log_prob_of_a_normal_is_exact(std: float) -> None:
    def denoise(x: Tensor, sigma: Tensor) -> Moments:
        return Moments(2 + (x - 2) * std**2 / (std**2 + sigma**2), x)

    at = 2 + std * torch.linspace(-3, 3, 14, dtype=torch.float64).reshape(7, 2)
    blurred = torch.distributions.Normal(2.0, math.sqrt(std**2 + 0.03**2)).log_prob(at).sum(-1)
    torch.testing.assert_close(log_prob(denoise, SCHEDULE, Unbounded(), at), blurred, atol=2e-3, rtol=0)


def test_runge_kutta_is_of_fourth_order() -> None:
    at = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64).unsqueeze(1)
    exact = torch.distributions.Normal(0.0, math.sqrt(0.25 + 0.03**2)).log_prob(at).sum(-1)
    coarse, fine = ((log_prob(shrink, SCHEDULE, Unbounded(), at, n) - exact).abs().max() for n in (8, 16))
    assert fine < coarse / 10


def test_denoised_means_are_projected() -> None:
    """A denoiser with means outside the box gives the result of one with means at the bound."""
    samples = 0.9 + 0.1 * torch.rand(8, 3, 2)
    for function in (
        lambda denoise: entropy(denoise, SCHEDULE, Box(), samples, torch.Generator().manual_seed(1)),
        lambda denoise: log_prob(denoise, SCHEDULE, Box(), samples, steps=4),
    ):
        outside, at_bound = (function(lambda x, sigma: Moments(value + 0 * x, x)) for value in (25.0, 1.0))  # noqa: B023
        torch.testing.assert_close(outside, at_bound)


def test_the_mean_over_probes_is_the_exact_divergence() -> None:
    distribution, support = DISTRIBUTIONS["two modes 2d"]
    at = distribution.draw(3)
    exact = log_prob(distribution.denoise, SCHEDULE, support, at, steps=6)
    noisy = log_prob(distribution.denoise, SCHEDULE, support, at.repeat(400, 1), steps=6, probes=1).reshape(400, 3)
    assert (noisy.std(0) > 1e-4).any()
    assert ((noisy.mean(0) - exact).abs() < 5 * noisy.std(0) / 20 + 1e-9).all()
    many = log_prob(distribution.denoise, SCHEDULE, support, at.repeat(100, 1), steps=6, probes=4).reshape(100, 3)
    assert float((noisy.std(0) / many.std(0)).max()) == pytest.approx(2, rel=0.4)


# Tanh: the same diffusion with another map to the action


def test_tanh_adds_the_log_jacobian() -> None:
    distribution = Distribution(normal([(0.3, 0.4)]), [1], -3, 3)
    tanh, latents = Tanh(-1, 3), distribution.draw(50, 8)
    actions = 1 + 2 * torch.tanh(latents)
    shift = (math.log(2) + torch.log1p(-torch.tanh(latents).square())).sum(-1)
    plain, squashed = (
        entropy(distribution.denoise, SCHEDULE, support, samples, torch.Generator().manual_seed(1))
        for support, samples in ((Unbounded(), latents), (tanh, actions))
    )
    torch.testing.assert_close(squashed, plain + shift.mean(0))
    plain, squashed = (
        log_prob(distribution.denoise, SCHEDULE, support, samples[0], steps=5)
        for support, samples in ((Unbounded(), latents), (tanh, actions))
    )
    torch.testing.assert_close(squashed, plain - shift[0])
    trajectory = Ancestral(10).trajectory(
        distribution.denoise, SCHEDULE, tanh, torch.empty(50, 2, 1, dtype=torch.float64)
    )
    log_slope = math.log(2) + torch.log1p(-torch.tanh(trajectory.mean[-1]).square())
    expected = trajectory_entropy(trajectory, Unbounded()) + log_slope.sum(-1).mean(0)
    torch.testing.assert_close(trajectory_entropy(trajectory, tanh), expected)


# Randomness, shapes and bad arguments


def test_follows_its_generator() -> None:
    samples, before = torch.randn(8, 3, 2), torch.get_rng_state()
    for function in (
        lambda g: entropy(shrink, SCHEDULE, Unbounded(), samples, g),
        lambda g: log_prob(Denoiser(2).bind(torch.empty(0)), SCHEDULE, Unbounded(), samples, 3, 2, g),
    ):
        state = torch.get_rng_state()
        first = function(torch.Generator().manual_seed(1))
        torch.set_rng_state(state)
        again = function(torch.Generator().manual_seed(1))
        torch.testing.assert_close(first, again, rtol=0, atol=0)
    torch.set_rng_state(before)
    first, other = (entropy(shrink, SCHEDULE, Unbounded(), samples, torch.Generator().manual_seed(s)) for s in (1, 2))
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())
    distribution, support = DISTRIBUTIONS["two modes 2d"]
    at = distribution.draw(4)
    before = torch.get_rng_state()
    first, again, other = (
        log_prob(distribution.denoise, SCHEDULE, support, at, 3, 1, torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(2,), (3, 2), (4, 3, 2)], ids=str)
@pytest.mark.parametrize("support", [Unbounded(), Box(), Tanh()], ids=lambda support: type(support).__name__)
def test_shape_dtype_and_no_gradient(support: Support, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    net = Denoiser(2, 3, MLP((8,))).to(dtype)
    denoise = net.bind(torch.randn(*shape[:-1], 3, dtype=dtype))
    actions = torch.rand(5, *shape, dtype=dtype).requires_grad_()
    trajectory = Ancestral(4).trajectory(denoise, SCHEDULE, support, torch.empty(5, *shape, dtype=dtype))
    for answer in (
        entropy(denoise, SCHEDULE, support, actions),
        trajectory_entropy(trajectory, support),
        log_prob(denoise, SCHEDULE, support, actions[0], steps=3),
        log_prob(denoise, SCHEDULE, support, actions[0], steps=3, probes=2),
    ):
        assert answer.shape == shape[:-1]
        assert answer.dtype == dtype
        assert torch.isfinite(answer).all()
        assert not answer.requires_grad
    assert actions.grad is None
    assert all(parameter.grad is None for parameter in net.parameters())


def test_float32_is_close_to_float64() -> None:
    distribution, support = DISTRIBUTIONS["corner"]
    at = distribution.draw(20)
    double, single = (
        log_prob(distribution.denoise, SCHEDULE, support, at.to(dtype)) for dtype in (torch.float64, torch.float32)
    )
    torch.testing.assert_close(single.double(), double, atol=1e-3, rtol=0)


def test_entropy_of_a_distribution_narrower_than_the_noise_is_finite() -> None:
    def denoise(x: Tensor, sigma: Tensor) -> Moments:
        return Moments(0.4 + 0 * x, x)

    for support in (Unbounded(), Box()):
        assert torch.isfinite(entropy(denoise, SCHEDULE, support, torch.full((8, 3, 2), 0.4))).all()
        for sampler in (Ancestral(5), ProbabilityFlow(5), Ancestral(1)):
            trajectory = sampler.trajectory(denoise, SCHEDULE, support, torch.empty(8, 3, 2))
            for paired in (True, False):
                answer = trajectory_entropy(trajectory, support, paired)
                assert torch.isfinite(answer).all()


def test_too_small_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="1 samples"):
        entropy(shrink, SCHEDULE, Unbounded(), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="levels=1"):
        entropy(shrink, SCHEDULE, Unbounded(), torch.zeros(3, 2), levels=1)
    like = torch.zeros(4, 1, 3, 2)
    with pytest.raises(ValueError, match="1 trajectories"):
        trajectory_entropy(Trajectory(like[0], like[0], like, torch.ones(4), like), Box())
    for wrong in ({"steps": 0}, {"probes": 0}):
        with pytest.raises(ValueError, match="=0"):
            log_prob(shrink, SCHEDULE, Unbounded(), torch.zeros(3, 2), **wrong)
