import math
from collections.abc import Callable

import pytest
import torch
from helpers import estimated
from scipy.stats import truncnorm
from torch import Tensor

from dqs_lightning.diffusion import (
    Box,
    Defensive,
    EnergyEstimator,
    GuidedDefensive,
    Importance,
    LogProb,
    Moments,
    MultiStart,
    Posterior,
    Resampling,
    Support,
    Tanh,
    TargetScore,
    Unbounded,
)
from dqs_lightning.diffusion.estimators import GRADIENT_COST
from dqs_lightning.diffusion.importance import Component, MixtureImportance
from dqs_lightning.registry import components

MIXTURES = list(components(MixtureImportance).values())
SUPPORTS = list(components(Support).values())

ExactPosterior = Callable[[LogProb, Tensor, Tensor, Support], Moments]
each_mixture = pytest.mark.parametrize("cls", MIXTURES, ids=lambda cls: cls.__name__)


@pytest.fixture(params=SUPPORTS, ids=lambda cls: cls.__name__)
def support(request: pytest.FixtureRequest) -> Support:
    return request.param()


def noised(shape: tuple[int, ...], sigma: float) -> Tensor:
    """Returns noised uniform actions of the box, in float64."""
    clean = 2 * torch.rand(shape, dtype=torch.float64) - 1
    return clean + sigma * torch.randn_like(clean)


def rms(error: Tensor) -> float:
    return error.square().mean().sqrt().item()


def test_all_mixtures_are_found() -> None:
    assert {"Defensive", "GuidedDefensive", "Importance"} <= {cls.__name__ for cls in MIXTURES}


# Properties of every mixture of proposals


@each_mixture
@pytest.mark.parametrize("num_samples", [1, 2, 3, 32])
def test_components_add_up(cls: type[MixtureImportance], wells: LogProb, num_samples: int) -> None:
    x, sigma = noised((8, 4, 2), 0.3), torch.full((8, 4, 1), 0.3, dtype=torch.float64)
    estimator = cls(num_samples=num_samples)
    found = estimator.components(Posterior(wells, x, sigma, Box(), guide=x / 2))
    assert sum(component.num * len(component.center) for component in found) == num_samples * len(x)
    # One component is around x with width sigma, and so covers the posterior.
    assert any(
        torch.equal(component.center, x) and torch.equal(component.width, sigma) and component.num
        for component in found
    )


@each_mixture
@pytest.mark.parametrize("num_samples", [8, 32])
def test_pooling_lowers_the_error(
    cls: type[MixtureImportance], support: Support, wells: LogProb, posterior: ExactPosterior, num_samples: int
) -> None:
    """At equal cost, the error of eight points of a state is smaller if they share their candidates."""
    x, sigma = noised((8, 6, 2), 0.4), torch.tensor(0.4, dtype=torch.float64)
    exact = posterior(wells, x, sigma, support).mean
    estimator = cls(num_samples=num_samples)
    shared = estimated(estimator, wells, x, sigma, support)
    apart = estimated(estimator, wells, x.reshape(-1, 2), sigma, support)
    assert rms(shared.denoised - exact) < 0.8 * rms(apart.denoised.reshape(x.shape) - exact)
    assert shared.ess.mean() > apart.ess.mean()


@each_mixture
def test_candidates_are_weighted_by_the_density_of_all_components(
    cls: type[MixtureImportance], support: Support, wells: LogProb
) -> None:
    """The estimate equals a loop over points and candidates, for points of one state at different noise levels."""
    x, guide, sigma = noised((3, 2, 2), 0.3), noised((3, 2, 2), 0.3), 0.2 + torch.rand(3, 2, 1, dtype=torch.float64)
    estimator, generator = cls(num_samples=9), torch.Generator().manual_seed(1)
    estimate = estimated(estimator, wells, x, sigma, support, torch.Generator().manual_seed(1), guide)
    parts = estimator.components(Posterior(wells, x, sigma, support, generator, guide))
    drawn = torch.cat([support.draw(c.center, c.width, c.num, generator).flatten(0, 1) for c in parts])
    assert len(drawn) == 27
    for b in range(2):
        points = drawn[:, b].reshape(27, 1, 2)
        density = sum(
            c.num * support.proposal_log_prob(points, center[b], width[b]).exp()
            for c in parts
            for center, width in zip(c.center, c.width, strict=True)
        )
        for m in range(3):
            likelihood = -(points - x[m, b]).square().sum(-1) / (2 * sigma[m, b] ** 2)
            weight = torch.exp(support.log_prob(wells, points) + likelihood) / density
            weight = weight / weight.sum()
            torch.testing.assert_close(estimate.denoised[m, b], (weight.unsqueeze(-1) * points).sum((0, 1)))
            second_moment = (weight.unsqueeze(-1) * (points - guide[m, b]).square()).sum((0, 1))
            torch.testing.assert_close(estimate.second_moment[m, b], second_moment)
            torch.testing.assert_close(estimate.ess[m, b], 1 / weight.square().sum())


@each_mixture
def test_weighted_means_stay_in_the_box(cls: type[MixtureImportance], wells: LogProb) -> None:
    x = torch.linspace(-20, 20, 401).unsqueeze(1)
    for sigma in (1e-3, 0.03, 0.5, 2.0):
        for guide in (None, -x):
            estimate = estimated(cls(num_samples=4), wells, x, torch.tensor(sigma), Box(), guide=guide)
            assert estimate.denoised.abs().max() <= 1 + 1e-6


# Importance


@pytest.mark.parametrize("cls", [Importance, TargetScore])
def test_ess_falls_from_flat_to_sharp_energies(cls: type[EnergyEstimator]) -> None:
    x, sigma = torch.zeros(8, 2), torch.tensor(0.5)
    flat = estimated(cls(num_samples=16), lambda a: 0 * a.sum(-1), x, sigma, Box()).ess
    tilted = estimated(cls(num_samples=16), lambda a: 2 * a.sum(-1), x, sigma, Box()).ess
    sharp = estimated(cls(num_samples=16), lambda a: 1e5 * a.sum(-1), x, sigma, Box()).ess
    torch.testing.assert_close(flat, torch.full((8,), 16.0))
    assert ((tilted > 1.01) & (tilted < 15.9)).all()
    assert (sharp < 1.01).all()


def test_importance_is_a_softmax_over_its_draws(support: Support, wells: LogProb) -> None:
    """For one point the density of the proposals and the likelihood cancel, so the weights are softmax(log_prob)."""
    x, sigma = noised((10, 2), 0.3), torch.tensor(0.3, dtype=torch.float64)
    points = support.propose(x, sigma, 16, torch.Generator().manual_seed(1)).points
    weight = support.log_prob(wells, points).softmax(0)
    estimate = estimated(Importance(16), wells, x, sigma, support, torch.Generator().manual_seed(1))
    torch.testing.assert_close(estimate.denoised, (weight.unsqueeze(-1) * points).sum(0))
    torch.testing.assert_close(estimate.ess, 1 / weight.square().sum(0))


# Defensive and GuidedDefensive

DEFENSIVE = [
    Defensive,
    GuidedDefensive,
    lambda num_samples: GuidedDefensive(num_samples, widths=(1.0, 0.3), gradient_steps=3),
    lambda num_samples: GuidedDefensive(num_samples, sigma_data=1.0, clip=0.5, widths=(0.1, 0.5, 2.0)),
]
each_defensive = pytest.mark.parametrize("build", DEFENSIVE, ids=["defensive", "guided", "steps", "widths"])


@each_defensive
@pytest.mark.parametrize("sigma", [0.1, 0.4])
def test_converges_to_the_posteriors_mean_with_any_guide(
    build: Callable[[int], MixtureImportance], support: Support, wells: LogProb, posterior: ExactPosterior, sigma: float
) -> None:
    x, noise = noised((12, 2), sigma), torch.tensor(sigma, dtype=torch.float64)
    exact = posterior(wells, x, noise, support)
    for guide in (None, exact.mean, -exact.mean, 5 + 0 * x):
        estimate = estimated(build(10_000), wells, x, noise, support, guide=guide)
        error = (estimate.denoised - exact.mean).abs()
        assert error.mean() < 0.03 * sigma
        assert error.max() < 0.25 * sigma


@each_defensive
def test_a_guide_lowers_the_error_in_six_dimensions(build: Callable[[int], MixtureImportance]) -> None:
    """With few proposals and a narrow optimum in a corner, proposals around the guide lower the error."""

    def narrow(a: Tensor) -> Tensor:
        return 20 * a.sum(-1)

    x, sigma = noised((200, 6), 0.5), torch.tensor(0.5, dtype=torch.float64)
    # The posterior is a product: a truncated normal around x + 20 sigma^2 in each dimension.
    exact = torch.from_numpy(truncnorm.mean(*((bound - x.numpy() - 5) / 0.5 for bound in (-1, 1)), x.numpy() + 5, 0.5))

    def error(estimator: EnergyEstimator, guide: Tensor | None = None) -> float:
        return rms(estimated(estimator, narrow, x, sigma, Box(), guide=guide).denoised - exact)

    assert error(build(32), exact) < error(Importance(32)) / 1.5


def test_a_gradient_lowers_the_error_of_a_distant_guide() -> None:
    """With a guide far from a narrow optimum, following the gradient lowers the error."""
    target = torch.tensor([0.6, -0.6], dtype=torch.float64)

    def narrow(a: Tensor) -> Tensor:
        return -(a - target).square().sum(-1) / (2 * 0.1**2)

    x, sigma = noised((300, 2), 2.0), torch.tensor(2.0, dtype=torch.float64)
    exact, guide = (0.1**2 * x + 4.0 * target) / (0.1**2 + 4.0), torch.zeros_like(x)

    def error(estimator: EnergyEstimator) -> float:
        return rms(estimated(estimator, narrow, x, sigma, Unbounded(), guide=guide).denoised - exact)

    assert error(GuidedDefensive(16)) < 0.8 * error(Defensive(16))
    assert error(GuidedDefensive(16, widths=(0.3,), clip=3.0, gradient_steps=4)) < 0.8 * error(Defensive(16))


def parts(estimator: MixtureImportance, slope: float, guide: Tensor | None, support: Support) -> list[Component]:
    x, sigma = torch.tensor([[0.2], [0.2]]), torch.tensor([[0.3], [2.0]])
    return estimator.components(Posterior(lambda a: slope * a.sum(-1), x, sigma, support, guide=guide))


WIDTH = torch.tensor([[0.3], [2.0]]) * 0.7 / (torch.tensor([[0.3], [2.0]]) ** 2 + 0.49).sqrt()
"""Standard deviation of the posterior of a prior N(m, 0.7^2) at the noise levels of `parts`."""


def test_half_of_the_defensive_candidates_are_guided() -> None:
    for num_samples, guided in ((1, 0), (2, 1), (5, 2), (32, 16)):
        for guide in (None, torch.tensor([[0.5], [-3.0]])):
            around_x, around_guide = parts(Defensive(num_samples, 0.7), 1.0, guide, Box())
            assert (around_x.num, around_guide.num) == (num_samples - guided, guided)
            torch.testing.assert_close(around_guide.width, WIDTH)
            expected = torch.tensor([[0.2], [0.2]]) if guide is None else torch.tensor([[0.5], [-1.0]])
            torch.testing.assert_close(around_guide.center, expected)


@pytest.mark.parametrize("slope", [1e6, -1e6, 0.5, -0.5])
@pytest.mark.parametrize("gradient_steps", [1, 4])
def test_the_shift_along_the_gradient_is_clipped(slope: float, gradient_steps: int) -> None:
    """The shift is at most clip widths, with any number of steps; one by a small gradient is not clipped."""
    guide, clip = torch.tensor([[0.1], [-0.1]]), 0.5
    estimator = GuidedDefensive(12, 0.7, clip=clip, gradient_steps=gradient_steps)
    _, guided = parts(estimator, slope, guide, Unbounded())
    shift = torch.full_like(WIDTH, slope) * WIDTH**2 * gradient_steps
    torch.testing.assert_close(guided.center, guide + shift.clamp(-clip * WIDTH, clip * WIDTH))
    torch.testing.assert_close(guided.width, WIDTH)


def test_the_shift_ends_at_the_bound() -> None:
    _, guided = parts(GuidedDefensive(12, 0.7, clip=100.0), 1e6, torch.zeros(2, 1), Box())
    torch.testing.assert_close(guided.center, torch.ones(2, 1))


def test_each_step_uses_a_new_gradient() -> None:
    """One long step overshoots a narrow optimum; many steps of the same total length converge to it."""
    x, sigma, optimum = torch.zeros(1, 1), torch.full((1, 1), 2.0), 0.25

    def energy(a: Tensor) -> Tensor:
        return -(a - optimum).abs().sum(-1) * 1e3

    centers = [
        GuidedDefensive(8, clip=2.0, gradient_steps=steps)
        .components(Posterior(energy, x, sigma, Unbounded(), guide=x))[1]
        .center.item()
        for steps in (1, 16)
    ]
    assert abs(centers[0] - optimum) > 0.5
    assert abs(centers[1] - optimum) < 0.1


@pytest.mark.parametrize("widths", [(1.0,), (1.0, 0.3), (0.5, 1.0, 2.0), [1.0, 0.1]])
@pytest.mark.parametrize("num_samples", [1, 2, 12, 31])
def test_candidates_are_divided_between_widths(widths: tuple[float, ...], num_samples: int) -> None:
    estimator = GuidedDefensive(num_samples, 0.7, widths=widths, gradient_steps=2)
    around_x, *guided = parts(estimator, 1.0, None, Box())
    share = num_samples // (len(widths) + 1)
    assert [component.num for component in guided] == [share] * len(widths)
    assert around_x.num == num_samples - share * len(widths)
    for component, width in zip(guided, widths, strict=True):
        torch.testing.assert_close(component.width, WIDTH * width)
        torch.testing.assert_close(component.center, guided[0].center)
    assert estimator.cost() == num_samples + 2 * GRADIENT_COST


@pytest.mark.parametrize("num_samples", [1, 2, 9])
@pytest.mark.parametrize("gradient_steps", [1, 3])
def test_cost_includes_the_gradient_steps(num_samples: int, gradient_steps: int, wells: LogProb) -> None:
    count = 0

    def energy(a: Tensor) -> Tensor:
        nonlocal count
        value = wells(a)
        count += value.numel() * (GRADIENT_COST if a.requires_grad else 1)
        return value

    estimator = GuidedDefensive(num_samples, widths=(1.0, 0.3), gradient_steps=gradient_steps)
    estimated(estimator, energy, noised((3, 5, 2), 0.3), torch.tensor(0.3, dtype=torch.float64), Box())
    assert count == 5 * estimator.cost(3)


@pytest.mark.parametrize("cls", [Defensive, GuidedDefensive])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_bad_sigma_data_is_refused(cls: type[Defensive], value: float) -> None:
    with pytest.raises(ValueError, match=f"sigma_data={value}"):
        cls(sigma_data=value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("clip", 0.0),
        ("clip", -1.0),
        ("clip", float("nan")),
        ("widths", ()),
        ("widths", (1.0, 0.0)),
        ("widths", (-1.0,)),
        ("widths", (float("nan"),)),
        ("gradient_steps", 0),
    ],
    ids=str,
)
def test_bad_guidance_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name}="):
        GuidedDefensive(**{name: value})


# MultiStart


def narrow_modes(a: Tensor) -> Tensor:
    """Modes N(-0.4, 0.1^2) and N(0.4, 0.1^2) in each dimension; the right one has 0.7 of the mass."""
    left, right = ((a - center).square().sum(-1) / (2 * 0.1**2) for center in (-0.4, 0.4))
    return torch.logaddexp(math.log(0.3) - left, math.log(0.7) - right)


def test_climbs_find_the_mode_that_guide_and_noise_miss() -> None:
    """In six dimensions with large noise and a guide at one mode, the estimate is near the mean over both modes."""
    torch.manual_seed(0)
    x, sigma = 2 * torch.randn(8, 200, 6), torch.full((8, 200, 1), 2.0)
    # As at the end of a trajectory: half of the points of a state have little noise, all of them in the right mode.
    x[4:], sigma[4:] = 0.4 + 0.1 * torch.randn(4, 200, 6), 0.1
    share = torch.sigmoid(math.log(0.7 / 0.3) + 0.8 * x[:4].sum(-1) / 4.01)  # of the right mode, given x
    exact = 0.4 * (2 * share - 1)
    found = {
        cls: estimated(cls(32), narrow_modes, x, sigma, Box(), guide=torch.full_like(x, 0.4)).denoised[:4].mean(-1)
        for cls in (MultiStart, GuidedDefensive)
    }
    lost = found[GuidedDefensive].mean() - exact.mean()
    assert lost > 0.1
    assert (found[MultiStart].mean() - exact.mean()).abs() < lost / 3


def test_a_climb_ends_near_the_closest_mode_and_follows_the_generator() -> None:
    x, sigma = torch.zeros(1, 500, 1), torch.full((1, 500, 1), 0.02)
    ends, again = (
        MultiStart(8).components(Posterior(narrow_modes, x, sigma, Box(), torch.Generator().manual_seed(1), x))[2]
        for _ in "ab"
    )
    assert torch.equal(ends.center, again.center)
    # Uniform points are 0.26 away from the nearer mode on average.
    assert (ends.center.abs() - 0.4).abs().mean() < 0.15
    assert (ends.center > 0).float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_candidates_are_divided_between_noise_guide_and_climbs() -> None:
    x, sigma = torch.zeros(1, 2, 1), torch.ones(1, 2, 1)
    for num, share, expected in ((32, 0.25, [12, 12, 8]), (8, 0.5, [2, 2, 4]), (1, 0.25, [1, 0, 0])):
        found = MultiStart(num, share=share).components(Posterior(narrow_modes, x, sigma, Box(), guide=x))
        assert [component.num for component in found] == expected


@pytest.mark.parametrize(("points", "every", "climbs"), [(8, 4, 2), (8, 3, 2), (3, 4, 1), (4, 1, 4)])
def test_some_points_climb_and_all_draw_around_the_ends(points: int, every: int, climbs: int) -> None:
    x, sigma = torch.zeros(points, 50, 6), torch.linspace(2, 0.1, points).view(-1, 1, 1).expand(-1, 50, 1)
    _, guided, around_ends = MultiStart(8, every=every).components(Posterior(narrow_modes, x, sigma, Box(), guide=x))
    assert len(around_ends.center.unique(dim=0)) == climbs
    torch.testing.assert_close(around_ends.width, guided.width)


@pytest.mark.parametrize(
    ("name", "value"), [("share", 0.0), ("share", 1.0), ("share", float("nan")), ("climb", 0), ("every", 0)]
)
def test_bad_climbs_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}="):
        MultiStart(**{name: value})


# Resampling


@pytest.mark.parametrize("shape", [(4, 2), (3, 4, 2)], ids=["alone", "pooled"])
def test_resampling_needs_a_finite_volume(wells: LogProb, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Unbounded"):
        estimated(Resampling(), wells, torch.zeros(shape), torch.tensor(1.0), Unbounded())


@pytest.mark.parametrize("support", [Box(-2.0, 0.5), Tanh(-2.0, 0.5)], ids=["Box", "Tanh"])
def test_resampling_draws_from_the_same_distribution_at_every_noise_level(support: Support) -> None:
    """The candidates are uniform over the action set and depend on neither the noised points nor the noise level."""
    evaluated: list[Tensor] = []

    def energy(a: Tensor) -> Tensor:
        evaluated.append(a)
        return 0 * a.sum(-1)

    for sigma in (1e-3, 30.0):
        estimated(
            Resampling(500),
            energy,
            sigma * torch.randn(4, 1),
            torch.tensor(sigma),
            support,
            torch.Generator().manual_seed(1),
        )
    assert torch.equal(evaluated[0], evaluated[1])
    assert evaluated[0].min() < -1.95
    assert evaluated[0].max() > 0.45
    assert ((evaluated[0] >= -2.0) & (evaluated[0] <= 0.5)).all()


def test_resampling_pools_its_candidates(wells: LogProb, posterior: ExactPosterior) -> None:
    x, sigma = noised((8, 6, 2), 0.4), torch.tensor(0.4, dtype=torch.float64)
    exact = posterior(wells, x, sigma, Box()).mean
    shared, apart = (
        estimated(Resampling(32), wells, x, sigma, Box()),
        estimated(Resampling(32), wells, x.reshape(-1, 2), sigma, Box()),
    )
    assert rms(shared.denoised - exact) < 0.6 * rms(apart.denoised.reshape(x.shape) - exact)
    assert shared.ess.mean() > 4 * apart.ess.mean()
