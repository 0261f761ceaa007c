from collections.abc import Callable

import pytest
import torch
from helpers import estimated
from torch import Tensor, nn

from dqs_lightning.diffusion import (
    Box,
    ControlVariate,
    EnergyEstimator,
    Estimate,
    Importance,
    LogProb,
    Moments,
    NoiseSplit,
    Posterior,
    PosteriorMode,
    QScore,
    Resampling,
    Support,
    Tanh,
    TargetScore,
    Unbounded,
    score,
)
from dqs_lightning.diffusion.estimators import GRADIENT_COST, softmax_weights
from dqs_lightning.registry import components

ESTIMATORS = list(components(EnergyEstimator).values())
SUPPORTS = list(components(Support).values())
INCONSISTENT: set[type[EnergyEstimator]] = {PosteriorMode, QScore}
"""Estimators that by their docstring do not converge to the denoised mean; they draw no random numbers."""
CONSISTENT = [cls for cls in ESTIMATORS if cls not in INCONSISTENT]
NEEDS_VOLUME: set[type[EnergyEstimator]] = {Resampling}
"""Estimators that by their docstring need a support of finite volume, and noise that spans many candidates."""

ExactPosterior = Callable[[LogProb, Tensor, Tensor, Support], Moments]


def build(cls: type[EnergyEstimator], num_samples: int) -> EnergyEstimator:
    if cls is NoiseSplit:
        return NoiseSplit(TargetScore(num_samples), Importance(num_samples), at=0.2)
    return cls(num_samples=num_samples)


def estimators_of(classes: list[type[EnergyEstimator]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("cls", classes, ids=lambda cls: cls.__name__)


def pairs_of(classes: list[type[EnergyEstimator]]) -> pytest.MarkDecorator:
    """Parametrises a test with each estimator and each support that it accepts."""
    pairs = [(cls, support) for cls in classes for support in SUPPORTS]
    return pytest.mark.parametrize(
        ("cls", "support"),
        [
            pytest.param(cls, support(), id=f"{cls.__name__}-{support.__name__}")
            for cls, support in pairs
            if not (cls in NEEDS_VOLUME and support is Unbounded)
        ],
    )


each_estimator = estimators_of(ESTIMATORS)
each_consistent = estimators_of(CONSISTENT)
each_everywhere = estimators_of([cls for cls in CONSISTENT if cls not in NEEDS_VOLUME])
each_pair = pairs_of(ESTIMATORS)
each_consistent_pair = pairs_of(CONSISTENT)


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noised(shape: tuple[int, ...], sigma: float) -> Tensor:
    """Returns noised uniform actions of the box, in float64."""
    clean = 2 * torch.rand(shape, dtype=torch.float64) - 1
    return clean + sigma * torch.randn_like(clean)


class CountingEnergy:
    """Energy that counts its evaluations; one with a gradient counts `GRADIENT_COST`."""

    def __init__(self, log_prob: LogProb) -> None:
        self.log_prob, self.count = log_prob, 0

    def __call__(self, a: Tensor) -> Tensor:
        value = self.log_prob(a)
        self.count += value.numel() * (GRADIENT_COST if a.requires_grad else 1)
        return value


class _Constant(EnergyEstimator):
    """Returns the same estimate at every point."""

    def __init__(self, value: float, num_samples: int = 1) -> None:
        super().__init__(num_samples)
        self.value = value

    def estimate(self, posterior: Posterior) -> Estimate:
        filled = torch.full_like(posterior.x, self.value)
        return Estimate(filled, 2 * filled, 3 * filled[..., 0])


def test_all_estimators_are_found() -> None:
    assert {
        "ControlVariate",
        "Defensive",
        "GuidedDefensive",
        "Importance",
        "NoiseSplit",
        "PosteriorMode",
        "QScore",
        "Resampling",
        "TargetScore",
    } <= {cls.__name__ for cls in ESTIMATORS}


def test_score_is_tweedies_formula() -> None:
    """The score of noised actions of N(m, s^2) is that of N(m, s^2 + sigma^2)."""
    x, sigma, mean, std = torch.randn(5, 2), torch.rand(5, 1) + 0.1, 0.4, 0.7
    denoised = (std**2 * x + sigma**2 * mean) / (std**2 + sigma**2)
    torch.testing.assert_close(score(denoised, x, sigma), (mean - x) / (std**2 + sigma**2))


# Weights


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_weights_are_normalised_in_single_precision_or_better(dtype: torch.dtype) -> None:
    log_weight = torch.tensor([[50.0, 0.0], [49.75, -0.25], [48.5, 0.0], [50.0, -1.5], [40.0, -8.0]], dtype=dtype)
    exact = log_weight.double().softmax(0)
    weight, ess = softmax_weights(log_weight)
    assert weight.dtype == ess.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(weight.double(), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(ess.double(), 1 / exact.square().sum(0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_weights_do_not_depend_on_a_shift(dtype: torch.dtype) -> None:
    """Values near 50, where bfloat16 has steps of 0.25, have the weights of the same values near 0."""
    near_zero = torch.randint(-40, 40, (64, 5)).to(dtype) / 4
    for found, expected in zip(softmax_weights(near_zero + 50), softmax_weights(near_zero), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [1e30, -1e30])
def test_weights_of_huge_values_are_finite(value: float) -> None:
    weight, ess = softmax_weights(torch.tensor([value, value, 0.0]) if value > 0 else torch.tensor([value, value]))
    torch.testing.assert_close(weight[:2], torch.tensor([0.5, 0.5]))
    assert ess.item() == pytest.approx(2)


# Properties of every estimator on every support


@each_pair
@pytest.mark.parametrize("num_samples", [1, 32])
def test_unchanged_by_a_constant(
    cls: type[EnergyEstimator], support: Support, wells: LogProb, num_samples: int
) -> None:
    x, sigma, estimator = noised((64, 2), 0.3), torch.tensor(0.3, dtype=torch.float64), build(cls, num_samples)
    plain = estimated(estimator, wells, x, sigma, support, seeded())
    for constant in (1e4, -1e4):
        shifted = estimated(estimator, lambda a: wells(a) + constant, x, sigma, support, seeded())  # noqa: B023
        torch.testing.assert_close(shifted.denoised, plain.denoised, rtol=0, atol=1e-8)
        torch.testing.assert_close(shifted.second_moment, plain.second_moment, rtol=0, atol=1e-8)
        torch.testing.assert_close(shifted.ess, plain.ess, rtol=1e-6, atol=0)


@each_pair
@pytest.mark.parametrize("num_samples", [1, 2, 7])
@pytest.mark.parametrize("sigma", [1e-3, 0.03, 0.3, 2.0, 30.0])
@pytest.mark.parametrize("shape", [(256,), (3, 64)], ids=["alone", "pooled"])
def test_finite_at_every_noise(
    cls: type[EnergyEstimator],
    support: Support,
    wells: LogProb,
    num_samples: int,
    sigma: float,
    shape: tuple[int, ...],
) -> None:
    x, noise = noised((*shape, 3), sigma).float(), torch.full((*shape, 1), sigma)
    candidates = num_samples * (shape[0] if len(shape) == 2 else 1)
    for guide in (None, torch.zeros_like(x)):
        estimate = estimated(build(cls, num_samples), wells, x, noise, support, guide=guide)
        for found in (estimate.denoised, estimate.second_moment):
            assert found.shape == x.shape
            assert found.dtype == x.dtype
            assert torch.isfinite(found).all()
        assert (estimate.second_moment >= 0).all()
        assert estimate.ess.shape == shape
        assert (estimate.ess >= 1 - 1e-4).all()
        assert (estimate.ess <= candidates * (1 + 1e-4)).all()


@each_everywhere
@pytest.mark.parametrize("sigma", [0.03, 0.3])
def test_near_the_posterior_far_outside_the_box(
    cls: type[EnergyEstimator], wells: LogProb, posterior: ExactPosterior, sigma: float
) -> None:
    """In float32 the estimate is near the posterior's mean from the bounds of a box to 40 sigma outside."""
    distances = torch.linspace(0, 40, 161).unsqueeze(1)
    x, noise = torch.cat([1 + sigma * distances, -1 - sigma * distances]), torch.tensor(sigma)
    estimate = estimated(build(cls, 64), wells, x, noise, Box())
    exact = posterior(wells, x.double(), noise.double(), Box()).mean
    assert (estimate.denoised - exact).abs().max() < 3 * sigma


@each_pair
def test_follows_its_generator(cls: type[EnergyEstimator], support: Support, wells: LogProb) -> None:
    x, sigma, before = torch.linspace(-1, 1, 16).unsqueeze(1), torch.tensor(0.3), torch.get_rng_state()
    first, again, other = (estimated(build(cls, 8), wells, x, sigma, support, seeded(seed)) for seed in (1, 1, 2))
    for one, same, differs in zip(first, again, other, strict=True):
        assert torch.equal(one, same)
        assert torch.equal(one, differs) == (cls in INCONSISTENT)
    assert torch.equal(before, torch.get_rng_state())


@each_pair
@pytest.mark.parametrize("shape", [(16,), (3, 16)], ids=["alone", "pooled"])
def test_scalar_sigma_equals_a_column(
    cls: type[EnergyEstimator], support: Support, wells: LogProb, shape: tuple[int, ...]
) -> None:
    x = noised((*shape, 2), 0.3).float()
    scalar, column = (
        estimated(build(cls, 8), wells, x, sigma, support, seeded())
        for sigma in (torch.tensor(0.3), torch.full((*shape, 1), 0.3))
    )
    torch.testing.assert_close(scalar, column)


@each_pair
def test_no_gradient_reaches_the_energy(cls: type[EnergyEstimator], support: Support) -> None:
    network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.randn(4, 2, requires_grad=True)
    estimate = estimated(build(cls, 8), lambda a: network(a).squeeze(-1), x, torch.ones(4, 1), support, guide=x / 2)
    assert not any(found.requires_grad for found in estimate)
    assert all(parameter.grad is None for parameter in network.parameters())


@each_pair
def test_leaves_its_arguments_unchanged(cls: type[EnergyEstimator], support: Support, wells: LogProb) -> None:
    x, sigma, guide = noised((4, 2), 0.3), 0.1 + torch.rand(4, 1, dtype=torch.float64), noised((4, 2), 0.3)
    before = [argument.clone() for argument in (x, sigma, guide)]
    for near in (None, guide):
        estimated(build(cls, 8), wells, x, sigma, support, guide=near)
    for argument, copy in zip((x, sigma, guide), before, strict=True):
        assert torch.equal(argument, copy)
        assert not argument.requires_grad


@each_pair
def test_works_with_gradients_disabled(cls: type[EnergyEstimator], support: Support, wells: LogProb) -> None:
    x, sigma = torch.linspace(-1, 1, 16).unsqueeze(1), torch.tensor(0.3)
    with torch.no_grad():
        off = estimated(build(cls, 8), wells, x, sigma, support, seeded())
    torch.testing.assert_close(off, estimated(build(cls, 8), wells, x, sigma, support, seeded()))


@each_estimator
def test_zero_samples_are_refused(cls: type[EnergyEstimator]) -> None:
    with pytest.raises(ValueError, match="num_samples=0"):
        build(cls, 0)


@each_pair
@pytest.mark.parametrize("num_samples", [1, 2, 9])
@pytest.mark.parametrize("shape", [(5,), (3, 5)], ids=["alone", "pooled"])
def test_cost_is_the_number_of_evaluations(
    cls: type[EnergyEstimator], support: Support, wells: LogProb, num_samples: int, shape: tuple[int, ...]
) -> None:
    """`cost` is the number of evaluations of the energy for each state; one with a gradient counts `GRADIENT_COST`."""
    estimator, energy, x = build(cls, num_samples), CountingEnergy(wells), noised((*shape, 2), 0.3)
    estimated(estimator, energy, x, torch.tensor(0.3, dtype=torch.float64), support)
    states, points = x[0, ..., 0].numel() if x.ndim == 3 else len(x), len(x) if x.ndim == 3 else 1
    assert energy.count == estimator.cost(points) * states


@each_pair
def test_a_pool_of_one_point_equals_the_point_alone(
    cls: type[EnergyEstimator], support: Support, wells: LogProb
) -> None:
    x, guide, sigma = noised((16, 2), 0.3), noised((16, 2), 0.1), 0.1 + torch.rand(16, 1, dtype=torch.float64)
    for near in (None, guide):
        alone = estimated(build(cls, 8), wells, x, sigma, support, seeded(), near)
        pooled = estimated(
            build(cls, 8), wells, x[None], sigma[None], support, seeded(), None if near is None else near.unsqueeze(0)
        )
        torch.testing.assert_close(tuple(found.squeeze(0) for found in pooled), tuple(alone))


@estimators_of([cls for cls in ESTIMATORS if cls is not NoiseSplit])
def test_pools_is_whether_points_share_candidates(cls: type[EnergyEstimator]) -> None:
    """With a flat energy and large noise the ESS is the number of candidates, of all points or of one."""
    ess = estimated(build(cls, 8), lambda a: 0 * a.sum(-1), noised((4, 50, 1), 0.1), torch.tensor(3.0), Box()).ess
    assert (ess.mean() > 16) == cls.pools
    assert (ess <= 8 * (4 if cls.pools else 1) + 1e-3).all()


@each_pair
@pytest.mark.parametrize("pooled", [False, True], ids=["alone", "pooled"])
def test_rows_are_independent(cls: type[EnergyEstimator], support: Support, pooled: bool) -> None:
    """The estimate of a row depends only on the energy of that row."""

    def energy(pull: Tensor) -> LogProb:
        return lambda a: (pull * a).sum(-1)

    x, sigma = noised((3, 6, 2) if pooled else (6, 2), 0.3), torch.tensor(0.3, dtype=torch.float64)
    pull = torch.randn(6, 2, dtype=torch.float64)
    other = pull + torch.tensor([0.0, 0, 0, 5, 5, 5], dtype=torch.float64).unsqueeze(1)
    first, second = (estimated(build(cls, 8), energy(p), x, sigma, support, seeded()) for p in (pull, other))
    torch.testing.assert_close(first.denoised[..., :3, :], second.denoised[..., :3, :])
    assert (first.denoised[..., 3:, :] - second.denoised[..., 3:, :]).abs().max() > 1e-3


# Convergence to the posterior's moments


@each_consistent_pair
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("sigma", [0.1, 0.4])
def test_converges_to_quadrature(
    cls: type[EnergyEstimator], support: Support, wells: LogProb, posterior: ExactPosterior, dim: int, sigma: float
) -> None:
    """Mean and second moment converge to quadrature, without a guide and with one on the wrong side."""
    if cls in NEEDS_VOLUME and dim == 2 and sigma == 0.1:
        pytest.skip("too little noise for so few candidates")
    x, noise = noised((12, dim), sigma), torch.tensor(sigma, dtype=torch.float64)
    exact = posterior(wells, x, noise, support)
    for guide in (None, -x.clamp(-1, 1)):
        estimate = estimated(build(cls, 30_000), wells, x, noise, support, guide=guide)
        error = (estimate.denoised - exact.mean).abs()
        assert error.mean() < 0.03 * sigma
        assert error.max() < 0.25 * sigma
        away = 0 * exact.mean if guide is None else (exact.mean - guide).abs()
        error = (estimate.second_moment - exact.variance - away.square()).abs() / (sigma**2 + 2 * sigma * away)
        assert error.mean() < 0.03
        assert error.max() < 0.25


@each_consistent_pair
def test_pooled_points_converge_to_quadrature(
    cls: type[EnergyEstimator], support: Support, wells: LogProb, posterior: ExactPosterior
) -> None:
    """Each of the points of a state, at different noise levels, converges to quadrature."""
    x, sigma = noised((4, 3, 2), 0.3), torch.linspace(0.25, 0.6, 12, dtype=torch.float64).reshape(4, 3, 1)
    guide = -x.clamp(-1, 1)
    exact = posterior(wells, x, sigma, support)
    estimate = estimated(build(cls, 10_000), wells, x, sigma, support, guide=guide)
    error = (estimate.denoised - exact.mean).abs() / sigma
    assert error.mean() < 0.03
    assert error.max() < 0.25
    away = (exact.mean - guide).abs()
    error = (estimate.second_moment - exact.variance - away.square()).abs() / (sigma**2 + 2 * sigma * away)
    assert error.mean() < 0.03
    assert error.max() < 0.25


@each_everywhere
@pytest.mark.parametrize("sigma", [0.05, 0.3])
def test_converges_for_an_optimum_in_a_corner(
    cls: type[EnergyEstimator], posterior: ExactPosterior, sigma: float
) -> None:
    def towards_corner(a: Tensor) -> Tensor:
        return a @ torch.tensor([6.0, 3.0], dtype=a.dtype)

    away = sigma * torch.tensor([[0, 0], [1, -0.5], [1.5, 1.5], [-1, 2], [-1, -1], [0, -3]], dtype=torch.float64)
    x, noise = 1 + away, torch.tensor(sigma, dtype=torch.float64)
    exact = posterior(towards_corner, x, noise, Box())
    estimate = estimated(build(cls, 30_000), towards_corner, x, noise, Box())
    assert (estimate.denoised - exact.mean).abs().max() < 0.05 * sigma
    assert (estimate.second_moment - exact.variance).abs().max() < 0.05 * sigma**2


@each_consistent_pair
def test_error_shrinks_with_samples(
    cls: type[EnergyEstimator], support: Support, wells: LogProb, posterior: ExactPosterior
) -> None:
    x, noise = noised((400, 1), 0.3), torch.tensor(0.3, dtype=torch.float64)
    exact = posterior(wells, x, noise, support)
    few, many = (
        (estimated(build(cls, num), wells, x, noise, support).denoised - exact.mean).square().mean().sqrt()
        for num in (8, 512)
    )
    # With 64 times the samples the error falls by sqrt(64) = 8.
    assert many < few / 4


@each_everywhere
def test_gaussian_energy_without_bounds(cls: type[EnergyEstimator]) -> None:
    mean, std = torch.tensor([0.4, -1.0], dtype=torch.float64), 0.5

    def log_prob(a: Tensor) -> Tensor:
        return -(a - mean).square().sum(-1) / (2 * std**2)

    x = torch.tensor([[0.0, 0.0], [0.5, -1.5], [1.2, 0.3]], dtype=torch.float64)
    sigma = torch.tensor([[0.05], [0.2], [0.5]], dtype=torch.float64)
    exact = (std**2 * x + sigma**2 * mean) / (std**2 + sigma**2)
    estimate = estimated(build(cls, 50_000), log_prob, x, sigma, Unbounded())
    assert ((estimate.denoised - exact).abs() < 0.05 * sigma).all()
    variance = (std * sigma).square() / (std**2 + sigma**2)
    assert ((estimate.second_moment - variance).abs() < 0.05 * variance).all()


# TargetScore


def test_target_score_is_the_papers_without_bounds(wells: LogProb) -> None:
    """The score is the gradient in x of log mean exp(log_prob(x + sigma eps)) at fixed eps."""
    x, sigma, num = noised((10, 2), 0.2), torch.tensor(0.2, dtype=torch.float64), 16
    points = Unbounded().propose(x, sigma, num, seeded()).points
    shifted = x.clone().requires_grad_()
    (paper,) = torch.autograd.grad(torch.logsumexp(wells(shifted + (points - x)), 0).sum(), shifted)
    estimate = estimated(TargetScore(num_samples=num), wells, x, sigma, Unbounded(), seeded())
    torch.testing.assert_close(score(estimate.denoised, x, sigma), paper)


@pytest.mark.parametrize("support", [support() for support in SUPPORTS], ids=lambda support: type(support).__name__)
def test_target_score_clips_the_norm(support: Support, wells: LogProb) -> None:
    x, sigma, limit = noised((200, 2), 0.1), torch.tensor(0.1, dtype=torch.float64), 5.0
    free, clipped = (
        score(estimated(TargetScore(8, max_norm), wells, x, sigma, support, seeded()).denoised, x, sigma)
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


@pytest.mark.parametrize("cls", [ControlVariate, TargetScore])
def test_a_gradient_is_finite_where_a_random_number_is_zero(cls: type[EnergyEstimator], wells: LogProb) -> None:
    """The estimate is finite where a random number is exactly 0, as one in 2^24 is; this seed draws one."""
    x = torch.full((20_000, 1), 0.5)
    estimate = estimated(cls(num_samples=2), wells, x, torch.tensor(0.03), Box(), seeded(146))
    assert torch.isfinite(estimate.denoised).all()


# ControlVariate


@pytest.mark.parametrize("support", [Box(), Tanh(), Unbounded()], ids=lambda support: type(support).__name__)
@pytest.mark.parametrize("dim", [1, 2])
def test_control_variate_has_a_smaller_error_than_what_it_combines(
    support: Support, wells: LogProb, posterior: ExactPosterior, dim: int
) -> None:
    x, sigma = noised((40, dim), 0.3), torch.tensor(0.3, dtype=torch.float64)
    exact = posterior(wells, x, sigma, support).mean

    def error(estimator: EnergyEstimator) -> float:
        """Returns the mean absolute error over a hundred draws at each point."""
        drawn = estimated(estimator, wells, x.repeat(100, 1), sigma, support).denoised
        return (drawn - exact.repeat(100, 1)).abs().mean().item()

    assert error(ControlVariate(32)) < 0.85 * min(error(Importance(32)), error(TargetScore(32)))


def test_control_variate_is_between_what_it_combines(wells: LogProb) -> None:
    """With the same proposals the estimate is between those of Importance and TargetScore."""
    for support in (support() for support in SUPPORTS):
        for sigma in (0.03, 0.3, 1.0):
            x, noise = noised((100, 2), sigma), torch.tensor(sigma, dtype=torch.float64)
            mixed, one, other = (
                estimated(cls(4), wells, x, noise, support, seeded()).denoised
                for cls in (ControlVariate, Importance, TargetScore)
            )
            assert (mixed >= torch.minimum(one, other) - 1e-6).all()
            assert (mixed <= torch.maximum(one, other) + 1e-6).all()


def test_control_variate_is_exact_for_a_flat_energy() -> None:
    """Without a gradient the score has no variance, so D is exactly x."""
    x = torch.randn(20, 2)
    estimate = estimated(ControlVariate(4), lambda a: 0 * a.sum(-1), x, torch.tensor(0.3), Unbounded())
    torch.testing.assert_close(estimate.denoised, x)


# QScore


def test_q_score_is_the_score_of_the_clean_distribution(wells: LogProb) -> None:
    x, sigma = noised((20, 2), 0.3).requires_grad_(), 0.1 + torch.rand(20, 1, dtype=torch.float64)
    (exact,) = torch.autograd.grad(wells(x).sum(), x)
    estimate = estimated(QScore(), wells, x, sigma, Unbounded())
    torch.testing.assert_close(score(estimate.denoised, x.detach(), sigma), exact)
    assert (estimate.second_moment == 0).all()
    assert (estimate.ess == 1).all()


def test_q_score_on_a_box_is_projected() -> None:
    """Both the point at which the energy is evaluated and the estimate are projected."""
    evaluated: list[Tensor] = []

    def energy(a: Tensor) -> Tensor:
        evaluated.append(a.detach())
        return 3 * a.sum(-1)

    x, sigma = torch.tensor([[-4.0], [-1.2], [-0.5], [0.6], [4.0]]), torch.tensor(0.5)
    estimate = estimated(QScore(), energy, x, sigma, Box(), guide=torch.zeros(5, 1))
    torch.testing.assert_close(estimate.denoised, torch.tensor([[-1.0], [-0.45], [0.25], [1.0], [1.0]]))
    torch.testing.assert_close(estimate.second_moment, estimate.denoised**2)
    assert evaluated[0].abs().max() <= 1


# Transforms of torch.func


def test_an_estimator_that_takes_gradients_can_be_vectorised(wells: LogProb) -> None:
    """Works under `vmap` with a different energy for each row, as when the networks of several agents are stacked."""
    x, sigma, scale = noised((3, 5, 2), 0.3), torch.tensor(0.3, dtype=torch.float64), torch.tensor([0.5, 1.0, 2.0])

    def estimate(x: Tensor, scale: Tensor) -> Tensor:
        return estimated(PosteriorMode(), lambda a: scale * wells(a), x, sigma, Box()).denoised

    found = torch.func.vmap(estimate)(x, scale)
    torch.testing.assert_close(found, torch.stack([estimate(*each) for each in zip(x, scale, strict=True)]))
    assert not torch.equal(found[0], estimate(x[0], scale[1]))


# PosteriorMode


def gaussian(mean: float, std: float) -> LogProb:
    return lambda a: -(a - mean).square().sum(-1) / (2 * std**2)


def test_posterior_mode_of_a_gaussian_energy_is_its_mean() -> None:
    """The posterior's mean is a fixed point at every sigma, and repeated steps converge to it where sigma < std."""
    mean, std = 0.4, 0.5
    x, sigma = noised((20, 2), 0.3), torch.linspace(0.05, 1.0, 20, dtype=torch.float64).unsqueeze(1)
    exact = (std**2 * x + sigma**2 * mean) / (std**2 + sigma**2)
    estimate = estimated(PosteriorMode(), gaussian(mean, std), x, sigma, Unbounded(), guide=exact)
    torch.testing.assert_close(estimate.denoised, exact)
    torch.testing.assert_close(estimate.second_moment, torch.zeros_like(exact))

    sigma = sigma * 0.4
    exact = (std**2 * x + sigma**2 * mean) / (std**2 + sigma**2)
    guide = None
    for _ in range(200):
        guide = estimated(PosteriorMode(), gaussian(mean, std), x, sigma, Unbounded(), guide=guide).denoised
    torch.testing.assert_close(guide, exact)


def test_posterior_mode_starts_at_the_noised_point() -> None:
    """Without a guide the estimate is x plus sigma^2 times the gradient at x."""
    x, sigma = noised((20, 2), 0.1), torch.tensor(0.1, dtype=torch.float64)
    estimate = estimated(PosteriorMode(clip=100), gaussian(0.4, 0.5), x, sigma, Unbounded())
    torch.testing.assert_close(estimate.denoised, x + sigma**2 * (0.4 - x) / 0.5**2)


@pytest.mark.parametrize("clip", [0.5, 2.0])
def test_posterior_mode_stays_near_its_guide(clip: float) -> None:
    x, sigma = torch.zeros(9, 1), torch.logspace(-2, 1, 9).unsqueeze(1)
    guide = torch.linspace(-5, 5, 9).unsqueeze(1)
    reach = clip * sigma * 0.7 / (sigma**2 + 0.7**2).sqrt()
    for slope in (1e6, -1e6):
        energy: LogProb = lambda a: slope * a.sum(-1)  # noqa: B023, E731
        estimate = estimated(PosteriorMode(sigma_data=0.7, clip=clip), energy, x, sigma, Unbounded(), guide=guide)
        torch.testing.assert_close(estimate.denoised, guide + reach * (1 if slope > 0 else -1))
        torch.testing.assert_close(estimate.second_moment, reach**2)


def test_posterior_mode_on_a_box_is_projected() -> None:
    guide = torch.tensor([[-7.0], [0.0], [7.0]])
    estimate = estimated(
        PosteriorMode(clip=100), lambda a: 1e3 * a.sum(-1), guide, torch.tensor(0.5), Box(), guide=guide
    )
    torch.testing.assert_close(estimate.denoised, torch.ones(3, 1))


@pytest.mark.parametrize("name", ["sigma_data", "clip"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_bad_arguments_of_posterior_mode_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}"):
        PosteriorMode(**{name: value})


# NoiseSplit


@pytest.mark.parametrize("shape", [(4,), (2, 4)], ids=["alone", "pooled"])
def test_noise_split_selects_an_estimator_for_each_row(shape: tuple[int, ...]) -> None:
    sigma = torch.tensor([0.01, 0.29, 0.3, 2.0]).expand(shape).unsqueeze(-1)
    split, x = NoiseSplit(_Constant(1.0), _Constant(5.0), at=0.3), torch.zeros(*shape, 2)
    expected = torch.tensor([1.0, 1.0, 5.0, 5.0]).expand(shape)
    estimate = estimated(split, lambda a: a.sum(-1), x, sigma, Unbounded())
    assert torch.equal(estimate.denoised, expected.unsqueeze(-1).expand_as(x))
    assert torch.equal(estimate.second_moment, 2 * expected.unsqueeze(-1).expand_as(x))
    assert torch.equal(estimate.ess, 3 * expected)


def test_noise_split_passes_its_guide_on(wells: LogProb) -> None:
    x, guide, sigma = noised((6, 2), 0.1), noised((6, 2), 0.1), torch.tensor(0.1, dtype=torch.float64)
    for split in (NoiseSplit(PosteriorMode(), QScore(), at=0.2), NoiseSplit(QScore(), PosteriorMode(), at=0.05)):
        found = estimated(split, wells, x, sigma, Box(), guide=guide)
        torch.testing.assert_close(found, estimated(PosteriorMode(), wells, x, sigma, Box(), guide=guide))


def test_noise_split_costs_the_sum_of_both() -> None:
    split = NoiseSplit(TargetScore(3), Importance(8))
    assert (split.cost(), split.num_samples) == (3 * GRADIENT_COST + 8, 8)


@pytest.mark.parametrize("at", [0.0, -1.0, float("nan")])
def test_bad_noise_levels_are_refused(at: float) -> None:
    with pytest.raises(ValueError, match=f"at={at}"):
        NoiseSplit(TargetScore(), Importance(), at=at)
