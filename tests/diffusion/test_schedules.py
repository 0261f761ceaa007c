import math

import pytest
import torch
from scipy.integrate import simpson
from scipy.stats import kstest

from dqs_lightning.diffusion import Geometric, Karras, NoiseSchedule, Power
from dqs_lightning.registry import components

SCHEDULES = list(components(NoiseSchedule).values())
TOLERANCE = {torch.float32: 5e-4, torch.float64: 1e-9}


@pytest.fixture(params=[(0.03, 2.0), (0.002, 80.0)], ids=str)
def limits(request: pytest.FixtureRequest) -> tuple[float, float]:
    return request.param


@pytest.fixture(params=SCHEDULES, ids=lambda cls: cls.__name__)
def schedule(request: pytest.FixtureRequest, limits: tuple[float, float]) -> NoiseSchedule:
    return request.param(*limits)


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def test_all_schedules_are_found() -> None:
    assert {"Geometric", "Linear", "Power", "Cosine", "Karras"} <= {cls.__name__ for cls in SCHEDULES}


@pytest.mark.parametrize("cls", SCHEDULES, ids=lambda cls: cls.__name__)
def test_defaults_build(cls: type[NoiseSchedule]) -> None:
    schedule = cls()
    assert 0 < schedule.sigma_min < schedule.sigma_max


def test_sigma_increases_from_sigma_min_to_sigma_max(schedule: NoiseSchedule, dtype: torch.dtype) -> None:
    sigma = schedule.sigma(torch.linspace(0, 1, 1001, dtype=dtype))
    assert sigma.dtype == dtype
    assert torch.isfinite(sigma).all()
    assert (sigma.diff() > 0).all()
    assert sigma[0].item() == pytest.approx(schedule.sigma_min, rel=TOLERANCE[dtype])
    assert sigma[-1].item() == pytest.approx(schedule.sigma_max, rel=TOLERANCE[dtype])


def test_t_of_sigma_inverts_sigma(schedule: NoiseSchedule, dtype: torch.dtype) -> None:
    t = torch.linspace(0, 1, 1001, dtype=dtype)
    # The inverse of Power has infinite slope at t = 0, where half of the digits are lost.
    atol = {torch.float32: 1e-4, torch.float64: 1e-7}[dtype]
    torch.testing.assert_close(schedule.t_of_sigma(schedule.sigma(t)), t, rtol=0, atol=atol)


def test_dvar_dt_is_the_derivative(schedule: NoiseSchedule, dtype: torch.dtype) -> None:
    t = torch.linspace(0, 1, 1001, dtype=torch.float64, requires_grad=True)
    (exact,) = torch.autograd.grad(schedule.sigma(t).square().sum(), t)
    torch.testing.assert_close(schedule.dvar_dt(t.detach().to(dtype)).double(), exact, rtol=TOLERANCE[dtype], atol=0)


def test_dvar_dt_integrates_to_the_variance(schedule: NoiseSchedule) -> None:
    t = torch.linspace(0, 1, 20001, dtype=torch.float64)
    total = simpson(schedule.dvar_dt(t).numpy(), x=t.numpy())
    assert total == pytest.approx(schedule.sigma_max**2 - schedule.sigma_min**2, rel=1e-6)


def test_the_papers_diffusion_coefficient() -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64, requires_grad=True)
    ratio = torch.tensor(2.0 / 0.03, dtype=torch.float64)
    (paper,) = torch.autograd.grad((0.03**2 * (ratio ** (2 * t) - 1)).sum(), t)
    torch.testing.assert_close(Geometric(0.03, 2.0).dvar_dt(t.detach()), paper)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_grid(schedule: NoiseSchedule, dtype: torch.dtype, steps: int) -> None:
    grid = schedule.grid(steps, torch.zeros(3, 2, dtype=dtype))
    assert grid.shape == (steps + 1,)
    assert grid.dtype == dtype
    assert (grid.diff() < 0).all()
    assert grid[0].item() == pytest.approx(schedule.sigma_max, rel=TOLERANCE[dtype])
    assert grid[-1] == 0
    if steps > 1:
        assert grid[-2].item() == pytest.approx(schedule.sigma_min, rel=TOLERANCE[dtype])


def test_grid_that_ends_early(schedule: NoiseSchedule) -> None:
    """The last level is the requested one if that is above sigma_min; otherwise the grid is unchanged."""
    like = torch.zeros(1, dtype=torch.float64)
    end = (schedule.sigma_min * schedule.sigma_max) ** 0.5
    grid = schedule.grid(7, like, end)
    assert grid[-2].item() == pytest.approx(end, rel=1e-6)
    assert grid[0].item() == pytest.approx(schedule.sigma_max, rel=1e-6)
    assert (grid.diff() < 0).all()
    assert torch.equal(schedule.grid(7, like, schedule.sigma_min / 2), schedule.grid(7, like))


def test_grid_of_zero_steps_is_refused(schedule: NoiseSchedule) -> None:
    with pytest.raises(ValueError, match="steps=0"):
        schedule.grid(0, torch.zeros(1))


@pytest.mark.parametrize("size", [1, 256])
def test_draw_stays_within_the_limits(schedule: NoiseSchedule, dtype: torch.dtype, size: int) -> None:
    sigma = schedule.draw(torch.zeros(size, 3, dtype=dtype))
    assert sigma.shape == (size, 1)
    assert sigma.dtype == dtype
    assert (sigma >= schedule.sigma_min * (1 - TOLERANCE[dtype])).all()
    assert (sigma <= schedule.sigma_max * (1 + TOLERANCE[dtype])).all()


def test_draw_puts_one_level_in_each_stratum(schedule: NoiseSchedule) -> None:
    t = schedule.t_of_sigma(schedule.draw(torch.zeros(1000, 2, dtype=torch.float64))).flatten() * 1000
    assert torch.equal(t.floor().sort().values, torch.arange(1000, dtype=torch.float64))
    assert kstest((t - t.floor()).numpy(), "uniform").pvalue > 1e-3


def test_draw_follows_its_generator(schedule: NoiseSchedule) -> None:
    like = torch.zeros(64, 2)
    before = torch.get_rng_state()
    first, again, other = (schedule.draw(like, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("cls", SCHEDULES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize(
    "low, high", [(0.0, 1.0), (-1.0, 2.0), (2.0, 1.0), (1.0, 1.0), (0.1, math.inf), (math.nan, 1.0)]
)
def test_bad_limits_are_refused(cls: type[NoiseSchedule], low: float, high: float) -> None:
    with pytest.raises(ValueError, match=f"sigma_min={low}: must be|sigma_max={high}: must be"):
        cls(sigma_min=low, sigma_max=high)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_bad_exponents_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=f"power={value}"):
        Power(power=value)
    with pytest.raises(ValueError, match=f"rho={value}"):
        Karras(rho=value)
