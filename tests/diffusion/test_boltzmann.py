"""Tests of `BoltzmannSampler`: its samples, entropy and likelihood, and its errors."""

import math

import pytest
import torch
from torch import Tensor

from dqs_lightning.diffusion import (
    MLP,
    Ancestral,
    BoltzmannSampler,
    Box,
    Geometric,
    GuidedDefensive,
    Importance,
    Tanh,
    Unbounded,
)


def bumps(a: Tensor) -> Tensor:
    """Two modes on the diagonal; the right one has 0.7 of the mass."""
    left, right = ((a - center).square().sum(-1) / (2 * 0.15**2) for center in (-0.5, 0.5))
    return torch.logaddexp(math.log(0.3) - left, math.log(0.7) - right)


def fit(sampler: BoltzmannSampler, log_prob: object, steps: int = 400, **changes: object) -> BoltzmannSampler:
    torch.manual_seed(0)
    return sampler.fit(log_prob, steps, progress=False, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fitted() -> BoltzmannSampler:
    torch.manual_seed(0)
    return fit(BoltzmannSampler(2, backbone=MLP((128, 128))), bumps, 800)


def test_samples_have_the_boltzmann_distribution(fitted: BoltzmannSampler) -> None:
    samples = fitted.sample(10_000, generator=torch.Generator().manual_seed(0))
    assert samples.shape == (10_000, 2)
    right = samples.sum(-1) > 0
    assert right.double().mean().item() == pytest.approx(0.7, abs=0.05)
    torch.testing.assert_close(samples[right].mean(0), torch.full((2,), 0.5), atol=0.02, rtol=0)
    torch.testing.assert_close(samples[right].std(0), torch.full((2,), 0.15), atol=0.03, rtol=0)


def test_entropy_and_likelihood_are_those_of_the_boltzmann_distribution(fitted: BoltzmannSampler) -> None:
    share = -(0.3 * math.log(0.3) + 0.7 * math.log(0.7))
    exact = share + 2 * 0.5 * math.log(2 * math.pi * math.e * 0.15**2)
    assert fitted.entropy().item() == pytest.approx(exact, abs=0.2)
    x = torch.tensor([[0.5, 0.5], [-0.5, -0.5], [0.3, 0.6]])
    constant = -math.log(2 * math.pi * 0.15**2)
    torch.testing.assert_close(fitted.log_prob(x), bumps(x) + constant, atol=0.3, rtol=0)


def test_follows_its_generator(fitted: BoltzmannSampler) -> None:
    one, again, other = (fitted.sample(50, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_steps_can_be_set_for_one_call(fitted: BoltzmannSampler) -> None:
    calls: list[int] = []
    handle = fitted.diffusion.denoiser.last.register_forward_hook(lambda *_: calls.append(1))
    fitted.sample(3, steps=17)
    fitted.sample(3)
    handle.remove()
    assert len(calls) == 17 + 10
    assert fitted.diffusion.sampler.steps == 10
    with pytest.raises(ValueError, match="steps=0"):
        fitted.sample(3, steps=0)


def test_samples_depend_on_the_condition() -> None:
    def one_mode(x: Tensor, condition: Tensor) -> Tensor:
        return -(x - 0.6 * condition).square().sum(-1) / (2 * 0.1**2)

    conditions = torch.rand(500, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sampler = fit(BoltzmannSampler(1, condition_dim=1, backbone=MLP((64, 64))), one_mode, 500, conditions=conditions)
    for value in (-0.8, 0.5):
        samples = sampler.sample(2000, torch.tensor([value]))
        assert samples.mean().item() == pytest.approx(0.6 * value, abs=0.05)
        assert samples.std().item() == pytest.approx(0.1, abs=0.04)
    each = torch.linspace(-1, 1, 400).unsqueeze(1)
    assert (sampler.sample(400, each) - 0.6 * each).abs().mean() < 0.15


def test_rescaling_the_box() -> None:
    """Rescaling the box scales the samples and shifts entropy and log density by d log(scale)."""
    unit = fit(BoltzmannSampler(2, backbone=MLP((32,))), bumps, 30)
    wide = fit(BoltzmannSampler(2, Box(10, 30), backbone=MLP((32,))), lambda x: bumps((x - 20) / 10), 30)
    wide.load_state_dict(unit.state_dict())
    one, two = (sampler.sample(100, generator=torch.Generator().manual_seed(0)) for sampler in (unit, wide))
    torch.testing.assert_close(two, 20 + 10 * one)
    unit_entropy, wide_entropy = (s.entropy(num=64, generator=torch.Generator().manual_seed(0)) for s in (unit, wide))
    torch.testing.assert_close(wide_entropy, unit_entropy + 2 * math.log(10))
    torch.testing.assert_close(wide.log_prob(two), unit.log_prob(one) - 2 * math.log(10), atol=1e-3, rtol=0)


@pytest.mark.parametrize("support", [Tanh(-1.5, 2.0), Unbounded(), Box(-0.3, 4.0)], ids=lambda s: type(s).__name__)
def test_every_support(support: Box | Tanh | Unbounded) -> None:
    sampler = fit(
        BoltzmannSampler(1, support, backbone=MLP((64, 64))), lambda x: -(x - 0.5).square().sum(-1) / (2 * 0.2**2)
    )
    samples = sampler.sample(4000)
    assert samples.mean().item() == pytest.approx(0.5, abs=0.08)
    assert samples.std().item() == pytest.approx(0.2, abs=0.08)
    if isinstance(support, Box | Tanh):
        assert ((samples >= support.low) & (samples <= support.high)).all()


def test_components_by_name_and_by_object() -> None:
    sampler = BoltzmannSampler(
        2,
        "Tanh",
        noise_schedule="Karras",
        energy_estimator=Importance(4),
        sampler="DPMSolverSDE",
        preconditioning="EDM",
    )
    assert type(sampler.diffusion.noise_schedule).__name__ == "Karras"
    assert sampler.diffusion.energy_estimator.num_samples == 4
    fit(sampler, bumps, 2)
    with pytest.raises(ValueError, match=r"noise_schedule='Kosine': must be one of Cosine.*did you mean Cosine"):
        BoltzmannSampler(2, noise_schedule="Kosine")
    with pytest.raises(ValueError, match="NoiseSplit needs arguments"):
        BoltzmannSampler(2, energy_estimator="NoiseSplit")
    with pytest.raises(ValueError, match=r"sampler=.*must be a Sampler"):
        BoltzmannSampler(2, sampler=Geometric())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dim=0"):
        BoltzmannSampler(0)


def test_a_second_fit_continues_training() -> None:
    sampler = fit(
        BoltzmannSampler(2, energy_estimator=GuidedDefensive(8), sampler=Ancestral(4), backbone=MLP((32,))), bumps, 5
    )
    before = {name: value.clone() for name, value in sampler.state_dict().items()}
    fit(sampler, bumps, 5)
    assert any(not torch.equal(value, before[name]) for name, value in sampler.state_dict().items())


# Errors


@pytest.mark.parametrize(
    ("log_prob", "message"),
    [
        (lambda x: x, r"gave \[3, 5, 2\]: must be \[3, 5\]"),
        (lambda x: x.sum(), r"gave \[\]: must be \[3, 5\]"),
        (lambda x: 1.0, "gave float"),
        (lambda x: x.sum(-1) * float("nan"), "log_prob is nan at x="),
        (lambda x: torch.where(x[..., 0] > -9, -torch.inf, 0.0), "log_prob is -inf at x="),
        (lambda x, condition: x.sum(-1), r"cannot be called as log_prob\(x\)"),
    ],
)
def test_a_bad_energy_is_refused_before_training(log_prob: object, message: str) -> None:
    sampler = BoltzmannSampler(2)
    before = {name: value.clone() for name, value in sampler.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        fit(sampler, log_prob)
    assert all(torch.equal(value, before[name]) for name, value in sampler.state_dict().items())


def test_an_energy_that_becomes_nan_during_training_is_refused() -> None:
    calls = []

    def breaks(x: Tensor) -> Tensor:
        calls.append(1)
        return bumps(x) * (float("nan") if len(calls) > 20 else 1.0)

    with pytest.raises(ValueError, match=r"update \d: a value of log_prob is not finite; the weights are those"):
        fit(BoltzmannSampler(2, backbone=MLP((16,))), breaks, 300)


@pytest.mark.parametrize("seed", range(8))
def test_an_energy_that_is_nan_in_a_rare_region_leaves_the_weights_unchanged(seed: int) -> None:
    found: list[list[Tensor]] = []

    def rare(x: Tensor) -> Tensor:
        bad = (x - 0.8).abs().amax(-1) < 0.008
        if bad.any():
            found.append([p.detach().clone() for p in sampler.parameters()])
        return torch.where(bad, torch.nan, -x.square().sum(-1) / (2 * 0.3**2))

    torch.manual_seed(seed)
    sampler = BoltzmannSampler(2, backbone=MLP((16,)))
    with pytest.raises(ValueError, match=r"update \d+: a value of log_prob is not finite"):
        sampler.fit(rare, 60, batch_size=64, progress=False)
    assert all(torch.equal(p, before) for p, before in zip(sampler.parameters(), found[0], strict=True))
    assert all(p.isfinite().all() for p in sampler.parameters())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("estimator", ["MultiStart", "TargetScore", "QScore", "PosteriorMode"])
def test_values_are_checked_with_estimators_that_do_not_use_them(estimator: str, value: float) -> None:
    """Values that are not finite are refused, also with estimators that use only the gradient."""

    def rare(x: Tensor) -> Tensor:
        return torch.where((x[..., 0] - 0.3).abs() < 0.02, value, -x.square().sum(-1))

    sampler = BoltzmannSampler(1, energy_estimator=estimator, backbone=MLP((16,)))
    with pytest.raises(ValueError, match=r"update \d+: a value of log_prob is not finite"):
        fit(sampler, rare, 60, batch_size=64)
    assert all(p.isfinite().all() for p in sampler.parameters())


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    sampler = BoltzmannSampler(2, energy_estimator="QScore", backbone=MLP((16,)))
    with pytest.raises(ValueError, match=r"update 0: the gradient of the loss is not finite"):
        fit(sampler, lambda x: -(x - x).sum(-1).abs().sqrt(), 3)
    assert all(p.isfinite().all() for p in sampler.parameters())


def test_bad_conditions_and_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"conditions of shape None: must be of dimension 3"):
        fit(BoltzmannSampler(2, condition_dim=3), lambda x, c: x.sum(-1))
    with pytest.raises(ValueError, match=r"conditions of shape \[5, 2\]"):
        fit(BoltzmannSampler(2, condition_dim=3), lambda x, c: x.sum(-1), conditions=torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"conditions of shape \[4\]: must be none"):
        BoltzmannSampler(2).sample(3, torch.zeros(4))
    with pytest.raises(ValueError, match="batch_size=3"):
        fit(BoltzmannSampler(2), bumps, 1, batch_size=3)
    with pytest.raises(ValueError, match=r"x of shape \[4\]"):
        BoltzmannSampler(2).log_prob(torch.zeros(4))
