import pytest
import torch
from helpers import estimated
from scipy.stats import kstest
from torch import Tensor

from dqs_lightning.diffusion import (
    MLP,
    AroundReplayActions,
    Box,
    Diffusion,
    Geometric,
    Importance,
    LogProb,
    MomentMatched,
    Moments,
    OnTrajectory,
    TrainingPoints,
    Trajectory,
)

SCHEDULE = Geometric(0.05, 5.0)
MEAN, STD = 0.3, 0.4


def exact(x: Tensor, sigma: Tensor) -> Moments:
    """Returns the exact moments for the distribution N(MEAN, STD^2)."""
    variance = STD**2 + sigma**2
    return Moments((STD**2 * x + sigma**2 * MEAN) / variance, (STD**2 * sigma**2 / variance).expand_as(x))


def trajectories(num: int, states: int = 500, steps: int = 12) -> Trajectory:
    sampler = MomentMatched(steps)
    return sampler.trajectory(exact, SCHEDULE, Box(-9, 9), torch.empty(num, states, 1, dtype=torch.float64))


def test_points_on_trajectories_have_the_noised_distribution() -> None:
    """(x - MEAN) / sqrt(STD^2 + sigma^2) is standard normal at every noise level, also between those of the sampler."""
    x, sigma = OnTrajectory(points=8, levels=4)(trajectories(2), lambda: torch.empty(0), SCHEDULE)
    assert x.shape == (8, 500, 1)
    assert sigma.shape == (8, 500, 1)
    standard = (x - MEAN) / torch.sqrt(STD**2 + sigma**2)
    for low, high in ((0.0, 0.4), (0.4, 2.0), (2.0, 9.0)):
        chosen = standard[(sigma >= low) & (sigma < high)]
        assert len(chosen) > 300
        assert kstest(chosen.numpy(), "norm").pvalue > 1e-4


def test_points_on_trajectories_cover_the_schedule_evenly() -> None:
    _, sigma = OnTrajectory(points=8, levels=2)(trajectories(4, 2000, 60), lambda: torch.empty(0), SCHEDULE)
    t = SCHEDULE.t_of_sigma(sigma).flatten()
    assert kstest(t.numpy(), "uniform").statistic < 0.03
    assert len(t.unique()) > 0.9 * len(t)


def test_levels_of_one_trajectory_cover_its_range() -> None:
    _, sigma = OnTrajectory(points=6, levels=3)(trajectories(2, 50), lambda: torch.empty(0), SCHEDULE)
    first, middle, last = SCHEDULE.t_of_sigma(sigma).view(3, 2, 50)
    assert (first > middle).all()
    assert (middle > last).all()


def test_points_below_the_last_level_of_a_trajectory_are_its_noised_end() -> None:
    trajectory = trajectories(1, 2000, 3)
    assert trajectory.sigma[-1] > 10 * SCHEDULE.sigma_min
    x, sigma = OnTrajectory(points=4, levels=4)(trajectory, lambda: torch.empty(0), SCHEDULE)
    below = (sigma < trajectory.sigma[-1]).squeeze(-1)
    noise = ((x - trajectory.end) / sigma)[below]
    assert len(noise) > 1000
    assert kstest(noise.flatten().numpy(), "norm").pvalue > 1e-4
    assert sigma.min() < 1.1 * SCHEDULE.sigma_min


def test_points_around_actions_have_the_noise_level_that_is_returned() -> None:
    clean = torch.rand(4000, 2, dtype=torch.float64)
    x, sigma = AroundReplayActions(points=3)(None, lambda: clean, SCHEDULE)
    assert x.shape == (3, 4000, 2)
    assert kstest(((x - clean) / sigma).flatten().numpy(), "norm").pvalue > 1e-4
    assert kstest(SCHEDULE.t_of_sigma(sigma).flatten().numpy(), "uniform").statistic < 0.01
    # The three points of an action are a third of the time range apart.
    t = SCHEDULE.t_of_sigma(sigma).squeeze(-1)
    assert ((t[1:] - t[:-1] - 1 / 3).abs() < 1e-3).all()


def test_points_follow_their_generator() -> None:
    drawn = trajectories(4)
    for points in (OnTrajectory(), AroundReplayActions(points=2)):
        first, again = (
            points(drawn, lambda: drawn.action[0], SCHEDULE, torch.Generator().manual_seed(1)) for _ in "ab"
        )
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])


def test_bad_points_are_refused() -> None:
    with pytest.raises(ValueError, match="levels=3: must be a divisor of points=8"):
        OnTrajectory(points=8, levels=3)
    with pytest.raises(ValueError, match="points=0"):
        AroundReplayActions(points=0)
    with pytest.raises(ValueError, match="states=0"):
        OnTrajectory(states=0)


def test_the_loss_fits_the_denoiser_to_the_posterior(wells: LogProb) -> None:
    torch.manual_seed(0)
    points = AtOnePoint(points=2)
    diffusion = Diffusion(1, energy_estimator=Importance(32), training_points=points, backbone=MLP((32,)))
    x, sigma = points(None, lambda: torch.zeros(64, 1), SCHEDULE)
    estimate = estimated(Importance(5000), wells, x, sigma, Box())
    optimizer, condition = torch.optim.Adam(diffusion.parameters(), 0.01), torch.empty(64, 0)
    for _ in range(300):
        loss, _ = diffusion.loss(wells, condition, None, lambda: torch.zeros(64, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moments = diffusion.denoiser(x, sigma, condition)
    torch.testing.assert_close(moments.mean.mean(), estimate.denoised.mean(), atol=0.02, rtol=0)
    torch.testing.assert_close(moments.variance.mean(), estimate.second_moment.mean(), atol=0, rtol=0.15)


class AtOnePoint(TrainingPoints):
    """Training points that are all at x = 0.2 and sigma = 0.3."""

    def __call__(self, trajectory, clean, schedule, generator=None) -> tuple[Tensor, Tensor]:
        like = clean().expand(self.points, *clean().shape)
        return torch.full_like(like, 0.2), torch.full_like(like[..., :1], 0.3)
