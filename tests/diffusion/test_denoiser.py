import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from dqs_lightning.diffusion import (
    EDM,
    Ancestral,
    Box,
    Denoiser,
    Geometric,
    Importance,
    Preconditioning,
    RawScore,
    score,
)
from dqs_lightning.registry import components

PRECONDITIONINGS = list(components(Preconditioning).values())
SIGMA = torch.tensor([[0.03], [0.2], [1.0], [4.0]], dtype=torch.float64)


class _Bare(Preconditioning):
    """The network's output as it is."""

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one = torch.ones_like(sigma)
        return 0 * one, one, one

    def loss_weight(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)


def network(preconditioning: Preconditioning, condition_dim: int = 3) -> Denoiser:
    """A denoiser of random weights, the last layer's too; the same ones at each call."""
    torch.manual_seed(5)
    denoiser = Denoiser(2, condition_dim, (16, 16), 8, preconditioning).double()
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
    """Input and regression target of the network have unit variance when clean actions have sigma_data^2."""
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


def test_raw_score_is_the_networks_output() -> None:
    x, condition = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    output = network(_Bare())(x, SIGMA, condition)
    denoised = network(RawScore())(x, SIGMA, condition)
    torch.testing.assert_close(score(denoised, x, SIGMA), output)

    target = x + SIGMA**2 * torch.randn_like(x)
    loss = RawScore().loss_weight(SIGMA) * (denoised - target).square()
    paper = (SIGMA**2 + 1e-3) * (output - score(target, x, SIGMA)).square()
    torch.testing.assert_close(loss, paper)


def test_denoiser_is_the_preconditioned_network(denoiser: Denoiser) -> None:
    x, condition = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    c_skip, c_out, c_in = denoiser.preconditioning.coefficients(SIGMA)
    output = network(_Bare())(c_in * x, SIGMA, condition)
    torch.testing.assert_close(denoiser(x, SIGMA, condition), c_skip * x + c_out * output)


# The network


def test_starts_as_the_skip_connection() -> None:
    x = torch.randn(4, 2)
    c_skip, _, _ = EDM().coefficients(SIGMA.float())
    torch.testing.assert_close(Denoiser(2)(x, SIGMA.float()), c_skip * x)


def test_given_equals_forward(denoiser: Denoiser) -> None:
    x, condition = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    denoise = denoiser.given(condition)
    for sigma in (SIGMA, 0.5 * SIGMA):
        torch.testing.assert_close(denoise(x, sigma), denoiser(x, sigma, condition))


def test_scalar_sigma_equals_a_column(denoiser: Denoiser) -> None:
    x, condition = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    sigma = torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(denoiser(x, sigma, condition), denoiser(x, sigma.expand(4, 1), condition))


def test_many_actions_a_condition_equal_a_loop(denoiser: Denoiser) -> None:
    x, condition = torch.randn(5, 4, 2, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    together = denoiser(x, SIGMA, condition)
    one_by_one = [torch.stack([denoiser(x[m, b], SIGMA[b], condition[b]) for b in range(4)]) for m in range(5)]
    torch.testing.assert_close(together, torch.stack(one_by_one))


def test_listens_to_noise_and_condition() -> None:
    bare, x = network(_Bare()), torch.zeros(4, 2, dtype=torch.float64)
    condition = torch.zeros(4, 3, dtype=torch.float64)
    assert len(bare(x, SIGMA, condition).unique(dim=0)) == 4
    assert not torch.allclose(bare(x, SIGMA, condition), bare(x, SIGMA, condition + 1))


def test_works_without_a_condition() -> None:
    denoiser = network(EDM(), condition_dim=0)
    x = torch.randn(4, 2, dtype=torch.float64)
    torch.testing.assert_close(denoiser(x, SIGMA), denoiser(x, SIGMA, x.new_empty(4, 0)))


def test_every_parameter_is_trained(denoiser: Denoiser) -> None:
    x, condition = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    denoiser(x, SIGMA, condition).square().sum().backward()
    for name, parameter in denoiser.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("embedding", [0, 1, 7])
def test_bad_embeddings_are_refused(embedding: int) -> None:
    with pytest.raises(ValueError, match=f"embedding={embedding}"):
        Denoiser(2, embedding=embedding)


# From an energy to its samples


def test_learns_to_sample_an_energy(mixture, wasserstein: Callable[[Tensor, np.ndarray], float]) -> None:
    """Training on targets from the energy alone, then sampling, gives the energy's law, masses included."""
    schedule, support, estimator = Geometric(), Box(), Importance(num_samples=32)
    denoiser = Denoiser(1, hidden=(64, 64), embedding=16)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.03, 600)
    for _ in range(600):
        clean = 2 * torch.rand(256, 1) - 1
        sigma = schedule.draw(clean)
        x = clean + sigma * torch.randn_like(clean)
        target = estimator(mixture.log_prob, x, sigma, support).denoised
        weight = denoiser.preconditioning.loss_weight(sigma)
        loss = (weight * (denoiser(x, sigma) - target).square()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()

    with torch.no_grad():
        samples = Ancestral(steps=30).sample(denoiser.given(None), schedule, support, torch.empty(4000, 1))
    assert (samples < 0).float().mean().item() == pytest.approx(0.3, abs=0.06)
    assert wasserstein(samples, mixture.quantiles(4000)) < 0.08


def test_the_mathematics_imports_torch_alone() -> None:
    heavy = "lightning", "torchrl", "tensordict", "dm_control", "gymnasium", "jsonargparse"
    program = f"import sys, dqs_lightning.diffusion; print([name for name in {heavy} if name in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"
