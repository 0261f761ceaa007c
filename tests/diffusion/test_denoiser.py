import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import estimated
from torch import Tensor

from dqs_lightning.diffusion import (
    EDM,
    MLP,
    Box,
    Defensive,
    Denoiser,
    Estimate,
    Geometric,
    MomentMatched,
    Moments,
    Preconditioning,
    RawScore,
    score,
)
from dqs_lightning.registry import components

PRECONDITIONINGS = list(components(Preconditioning).values())
SIGMA = torch.tensor([[0.03], [0.2], [1.0], [4.0]], dtype=torch.float64)


class _NoPreconditioning(Preconditioning):
    """Leaves the network's outputs unchanged: the mean, and the logarithm of the variance."""

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one = torch.ones_like(sigma)
        return 0 * one, one, one

    def loss_weight(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def prior_variance(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)


def network(preconditioning: Preconditioning, condition_dim: int = 3) -> Denoiser:
    """Returns a denoiser with random weights in every layer, the same at each call."""
    torch.manual_seed(5)
    denoiser = Denoiser(2, condition_dim, MLP((16, 16)), 8, preconditioning).double()
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return denoiser


@pytest.fixture(params=PRECONDITIONINGS, ids=lambda cls: cls.__name__)
def denoiser(request: pytest.FixtureRequest) -> Denoiser:
    return network(request.param())


# Preconditioning


def test_all_preconditionings_are_found() -> None:
    assert {"EDM", "RawScore"} <= {cls.__name__ for cls in PRECONDITIONINGS}


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_edm_coefficients(sigma_data: float) -> None:
    """Input and regression target of the network have unit variance if clean actions have variance sigma_data^2."""
    edm, data, noise = EDM(sigma_data), sigma_data**2, SIGMA**2
    c_skip, c_out, c_in = edm.coefficients(SIGMA)
    torch.testing.assert_close(c_skip, data / (data + noise))
    torch.testing.assert_close(c_in**2 * (data + noise), torch.ones_like(SIGMA))
    # The target is (a - c_skip (a + sigma eps)) / c_out.
    torch.testing.assert_close(((1 - c_skip) ** 2 * data + c_skip**2 * noise) / c_out**2, torch.ones_like(SIGMA))
    assert (c_out > 0).all()
    torch.testing.assert_close(edm.loss_weight(SIGMA) * c_out**2, torch.ones_like(SIGMA))


@pytest.mark.parametrize("sigma_data", [0.0, -1.0, float("nan")])
def test_bad_sigma_data_is_refused(sigma_data: float) -> None:
    with pytest.raises(ValueError, match=f"sigma_data={sigma_data}"):
        EDM(sigma_data)


@pytest.mark.parametrize(
    "preconditioning", [*(cls() for cls in PRECONDITIONINGS), EDM(1.3)], ids=lambda p: type(p).__name__
)
def test_prior_variance_is_that_of_a_normal_posterior(preconditioning: Preconditioning) -> None:
    """1 / V - 1 / sigma^2 is the precision of the prior at every sigma: sigma_data^-2, or 1 without sigma_data."""
    variance = preconditioning.prior_variance(SIGMA)
    assert variance.shape == SIGMA.shape
    assert (variance > 0).all()
    precision = torch.full_like(SIGMA, getattr(preconditioning, "sigma_data", 1.0) ** -2)
    torch.testing.assert_close(1 / variance - 1 / SIGMA**2, precision)


def test_raw_score_is_the_networks_output() -> None:
    x, condition = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    output = network(_NoPreconditioning())(x, SIGMA, condition).mean
    denoised = network(RawScore())(x, SIGMA, condition).mean
    torch.testing.assert_close(score(denoised, x, SIGMA), output)

    target = x + SIGMA**2 * torch.randn_like(x)
    loss = RawScore().loss_weight(SIGMA) * (denoised - target).square()
    paper = (SIGMA**2 + 1e-3) * (output - score(target, x, SIGMA)).square()
    torch.testing.assert_close(loss, paper)


def test_denoiser_is_the_preconditioned_network(denoiser: Denoiser) -> None:
    x, condition = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    c_skip, c_out, c_in = denoiser.preconditioning.coefficients(SIGMA)
    mean, ratio = network(_NoPreconditioning())(c_in * x, SIGMA, condition)
    moments = denoiser(x, SIGMA, condition)
    torch.testing.assert_close(moments.mean, c_skip * x + c_out * mean)
    torch.testing.assert_close(moments.variance, denoiser.preconditioning.prior_variance(SIGMA) * ratio)


# The network


@pytest.mark.parametrize("preconditioning", [cls() for cls in PRECONDITIONINGS], ids=lambda p: type(p).__name__)
def test_an_untrained_denoiser_has_the_priors_moments(preconditioning: Preconditioning) -> None:
    x, sigma = torch.randn(4, 2), SIGMA.float()
    c_skip, _, _ = preconditioning.coefficients(sigma)
    moments = Denoiser(2, preconditioning=preconditioning)(x, sigma, x.new_empty(0))
    torch.testing.assert_close(moments.mean, c_skip * x)
    torch.testing.assert_close(moments.variance, preconditioning.prior_variance(sigma).expand_as(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(3,), (4, 3), (5, 4, 3)], ids=str)
def test_moments_have_the_shape_and_dtype_of_x(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    denoiser, x = Denoiser(3, backbone=MLP((8,)), embedding=4).to(dtype), torch.randn(shape, dtype=dtype)
    for sigma in (torch.tensor(0.3, dtype=dtype), torch.full((*shape[:-1], 1), 0.3, dtype=dtype)):
        for found in denoiser(x, sigma, x.new_empty(0)):
            assert found.shape == shape
            assert found.dtype == dtype


@pytest.mark.parametrize("output", [-1e4, -20.0, 20.0, 1e4])
def test_variance_is_positive_and_bounded_for_any_weights(output: float) -> None:
    """The variance is within a factor of 10^4 of the prior's, so that log V and 1 / V are finite in the loss."""
    denoiser, x = Denoiser(2, backbone=MLP((8,)), embedding=4), torch.randn(4, 2)
    torch.nn.init.constant_(denoiser.last.bias, output)
    ratio = denoiser(x, SIGMA.float(), x.new_empty(0)).variance / EDM().prior_variance(SIGMA.float())
    assert ((ratio > 1e-4) & (ratio < 1e4)).all()
    assert ((ratio > 1) == (output > 0)).all()


def test_bind_equals_forward(denoiser: Denoiser) -> None:
    x, condition = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    denoise = denoiser.bind(condition)
    for sigma in (SIGMA, 0.5 * SIGMA):
        torch.testing.assert_close(denoise(x, sigma), denoiser(x, sigma, condition))


def test_scalar_sigma_equals_a_column(denoiser: Denoiser) -> None:
    x, condition = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    sigma = torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(denoiser(x, sigma, condition), denoiser(x, sigma.expand(4, 1), condition))


def test_many_actions_per_condition_equal_a_loop(denoiser: Denoiser) -> None:
    x, condition = torch.randn(5, 4, 2, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    together = denoiser(x, SIGMA, condition)
    for m in range(5):
        for b in range(4):
            alone = denoiser(x[m, b], SIGMA[b], condition[b])
            torch.testing.assert_close(Moments(*(found[m, b] for found in together)), alone)


def test_moments_depend_on_noise_and_condition() -> None:
    denoiser, x = network(_NoPreconditioning()), torch.zeros(4, 2, dtype=torch.float64)
    condition = torch.zeros(4, 3, dtype=torch.float64)
    for found, other in zip(denoiser(x, SIGMA, condition), denoiser(x, SIGMA, condition + 1), strict=True):
        assert len(found.unique(dim=0)) == 4
        assert not torch.allclose(found, other)


def test_every_parameter_is_trained(denoiser: Denoiser) -> None:
    x, condition = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    moments = denoiser(x, SIGMA, condition)
    (moments.mean.square().sum() + moments.variance.square().sum()).backward()
    for name, parameter in denoiser.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("embedding", [0, 1, 7])
def test_bad_embeddings_are_refused(embedding: int) -> None:
    with pytest.raises(ValueError, match=f"embedding={embedding}"):
        Denoiser(2, embedding=embedding)


# The loss


def constant_problem() -> tuple[Moments, Estimate, Tensor]:
    """Returns 64 estimates [64, 2] at one point, the moments [1, 2] that minimise their loss, and the noise level."""
    targets = torch.randn(64, 2, dtype=torch.float64)
    estimate = Estimate(targets, torch.rand(64, 2, dtype=torch.float64) + 0.1, torch.ones(64))
    best = Moments(targets.mean(0, keepdim=True), estimate.second_moment.mean(0, keepdim=True))
    return best, estimate, torch.full((64, 1), 0.4, dtype=torch.float64)


def gradients(denoiser: Denoiser, moments: Moments, estimate: Estimate, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the derivatives of the loss in mean and variance."""
    leaves = Moments(*(found.clone().requires_grad_() for found in moments))
    return torch.autograd.grad(denoiser.loss(leaves, estimate, sigma), leaves)


def test_loss_is_smallest_at_the_mean_of_the_estimates(denoiser: Denoiser) -> None:
    """The loss is smallest where D is the mean of the targets and V the mean of their second moments."""
    best, estimate, sigma = constant_problem()
    at_best = gradients(denoiser, best, estimate, sigma)
    for gradient in at_best:
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)
    for factor in (0.5, 2.0):
        mean, variance = gradients(denoiser, Moments(best.mean + factor - 1, best.variance * factor), estimate, sigma)
        assert (mean * (factor - 1) > 0).all()
        assert (variance * (factor - 1) > 0).all()


def test_gradients_of_mean_and_variance_are_independent(denoiser: Denoiser) -> None:
    """A wrong mean has no effect on the gradient of the variance, and a wrong variance none on that of the mean."""
    best, estimate, sigma = constant_problem()
    mean, variance = gradients(denoiser, Moments(best.mean, 3 * best.variance), estimate, sigma)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-9)
    assert variance.abs().min() > 1e-3
    mean, variance = gradients(denoiser, Moments(best.mean + 1, best.variance), estimate, sigma)
    torch.testing.assert_close(variance, torch.zeros_like(variance), rtol=0, atol=1e-9)
    assert mean.abs().min() > 1e-3


def test_only_the_mean_is_weighted_by_noise_level(denoiser: Denoiser) -> None:
    """The gradient of the mean is 2 lambda(sigma) (D - D_K) / size in each row; that of log V is not weighted."""
    mean, variance = torch.randn(4, 2, dtype=torch.float64), torch.rand(4, 2, dtype=torch.float64) + 0.1
    estimate = Estimate(torch.randn_like(mean), torch.rand_like(mean), torch.ones(4))
    in_mean, in_variance = gradients(denoiser, Moments(mean, variance), estimate, SIGMA)
    expected = denoiser.preconditioning.loss_weight(SIGMA) * (mean - estimate.denoised) / 4
    torch.testing.assert_close(in_mean, expected)
    share = in_variance * variance / (1 - estimate.second_moment / variance)
    torch.testing.assert_close(share, share[:1, :1].expand_as(share))
    assert share.min() > 0


def test_the_gradient_of_the_variance_is_bounded(denoiser: Denoiser) -> None:
    """The gradient of log V is that of the likelihood, 1 - S / V, up to S / V = 30, and constant above."""
    mean, variance = torch.zeros(4, 2, dtype=torch.float64), torch.full((4, 2), 0.25, dtype=torch.float64)
    ratio = torch.tensor([[0.0, 1.0], [2.0, 29.0], [31.0, 1e3], [1e5, 1e9]], dtype=torch.float64)
    estimate = Estimate(mean, ratio * variance, torch.ones(4))
    _, in_variance = gradients(denoiser, Moments(mean, variance), estimate, SIGMA)
    expected = 1 - torch.tensor([[0.0, 1.0], [2.0, 29.0], [30.0, 30.0], [30.0, 30.0]], dtype=torch.float64)
    torch.testing.assert_close(in_variance * variance / 0.1 * 8, expected)


# From an energy to its samples


def test_learns_to_sample_an_energy(mixture, wasserstein: Callable[[Tensor, np.ndarray], float]) -> None:
    """Training on an energy gives the posterior's moments, and samples whose modes have the correct masses."""
    schedule, support, estimator = Geometric(), Box(), Defensive(num_samples=32)
    denoiser = Denoiser(1, backbone=MLP((64, 64)), embedding=16)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-2)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.03, 800)
    for _ in range(800):
        clean = 2 * torch.rand(256, 1) - 1
        sigma = schedule.draw(clean)
        x = clean + sigma * torch.randn_like(clean)
        moments = denoiser(x, sigma, x.new_empty(0))
        loss = denoiser.loss(
            moments, estimated(estimator, mixture.log_prob, x, sigma, support, guide=moments.mean), sigma
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()

    with torch.no_grad():
        x = torch.linspace(-1, 1, 81).unsqueeze(1)
        for sigma in (torch.tensor(0.1), torch.tensor(0.4), torch.tensor(1.0)):
            found, exact = denoiser(x, sigma, x.new_empty(0)), mixture.denoise(x, sigma)
            assert (found.mean - exact.mean).abs().mean() < 0.12 * exact.variance.mean().sqrt()
            assert (found.variance - exact.variance).abs().mean() < 0.25 * exact.variance.mean()
        denoise, like = denoiser.bind(torch.empty(0)), torch.empty(4000, 1)
        samples = MomentMatched(steps=10).trajectory(denoise, schedule, support, like).action
    assert (samples < 0).float().mean().item() == pytest.approx(0.3, abs=0.06)
    assert wasserstein(samples, mixture.quantiles(4000)) < 0.08


def test_the_diffusion_package_imports_no_heavy_library() -> None:
    heavy = "lightning", "torchrl", "tensordict", "dm_control", "gymnasium", "jsonargparse"
    program = f"import sys, dqs_lightning.diffusion; print([name for name in {heavy} if name in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"
