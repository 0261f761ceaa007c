"""Tests of the pictures of sampled actions: the plane, the contour lines, and that training does not change."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers import small, small_agent, small_data, trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image

from dqs_callbacks import ActionLandscape
from dqs_callbacks.landscape import CELLS, FRAMES, REST, draw, landscape, mass_levels
from dqs_lightning.agents import DQS, SAC
from dqs_lightning.envs import Gym, Maze


def test_contour_lines_enclose_the_stated_probability() -> None:
    axis = torch.linspace(-4, 4, 801, dtype=torch.float64)
    radius = (axis[:, None] ** 2 + axis[None] ** 2).sqrt()
    outer, inner = mass_levels(torch.exp(-(radius**2) / 2), (0.9, 0.5))
    # In two dimensions the disc of radius r has probability 1 - exp(-r^2 / 2) under a standard normal.
    assert outer == pytest.approx(0.1, abs=1e-3) and inner == pytest.approx(0.5, abs=1e-3)


def test_in_two_dimensions_the_plane_is_the_action_set() -> None:
    agent, state = DQS(3, 2, **small()), torch.randn(3)
    found = landscape(agent, state, samples=40, trails=5)
    assert found.exact and found.actions.shape == (40, 2) and found.trails.shape == (7, 5, 2)
    torch.testing.assert_close(found.trails[-1], found.actions[:5])
    assert found.trails[0].abs().max() > 1  # sampling starts from noise outside of the action set
    for row, column in ((0, 0), (3, 70), (CELLS - 1, 40)):
        action = torch.stack([found.grid[row], found.grid[column]])[None]
        expected = agent.critic.value(state[None], action)[0]
        torch.testing.assert_close(found.q_value[row, column], expected, rtol=0, atol=1e-4)  # rounded in batches


def test_in_more_dimensions_the_plane_has_the_largest_variance_of_the_samples() -> None:
    agent, state = DQS(3, 5, **small()), torch.randn(3)
    found = landscape(agent, state, samples=200, trails=0)
    torch.testing.assert_close(found.axes @ found.axes.T, torch.eye(2))
    assert not found.exact and found.trails.shape[1] == 0
    samples = agent.sample(state[None], 4000)[:, 0]
    variance = ((samples - samples.mean(0)) @ found.axes.T).var(0).sum()
    assert variance > 2 / 5 * samples.var(0).sum()  # more than two random directions have on average
    plane = found.center + torch.cartesian_prod(found.grid, found.grid) @ found.axes
    outside = (plane.abs() > 1 + 1e-6).any(-1).reshape(CELLS, CELLS)
    assert torch.equal(found.q_value.isnan(), outside) and outside.any() and not outside.all()


def test_an_agent_without_a_sampler_is_drawn_without_trails_and_lines() -> None:
    found = landscape(SAC(3, 2, **small()), torch.randn(3), samples=40, trails=5)
    assert found.temperature is None and found.trails.shape[1] == 0 and found.actions.shape == (40, 2)
    (axis, _) = draw([found], ["s"]).axes
    assert not axis.lines and len(axis.collections) == 2  # Q and samples


def test_pictures_and_animations_are_written_and_training_does_not_change(tmp_path: Path) -> None:
    weights = []
    for callbacks in ([], [ActionLandscape(every_frames=400, states=2, samples=20, animate=True)]):
        L.seed_everything(1)
        data = small_data(environment=Maze(), total_frames=600, init_random_frames=300)
        agent = small_agent(data)
        trainer(tmp_path, callbacks).fit(agent, data)
        weights.append(agent.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    pictures = sorted(file.name for file in (tmp_path / "pictures").iterdir())
    assert pictures == ["denoising.gif", "landscape_400.png", "landscape_608.png"]
    with Image.open(tmp_path / "pictures" / "denoising.gif") as film:
        assert film.n_frames >= FRAMES  # the encoder merges the identical pictures at the end
        assert film.n_frames <= FRAMES + 1 + REST


@pytest.mark.parametrize(
    ("environment", "changes", "message"),
    [
        (Gym("Pendulum-v1"), {}, "at least two action dimensions; Pendulum-v1 has 1"),
        (Maze(), {"observations": [[0.0, 0.0, 0.0]]}, "observations have 3 numbers; maze-four-goals has 2"),
    ],
)
def test_unsupported_environments_and_observations_are_refused_before_training(
    tmp_path: Path, environment: Any, changes: dict[str, Any], message: str
) -> None:
    data = small_data(environment=environment)
    with pytest.raises(MisconfigurationException, match=message):
        trainer(tmp_path, [ActionLandscape(**changes)]).fit(small_agent(data), data)
    assert data.env_frames == 0


@pytest.mark.parametrize(
    "changes", [{"every_frames": 0}, {"states": 0}, {"samples": 1}, {"trails": -1}, {"observations": []}]
)
def test_numbers_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    name, value = next(iter(changes.items()))
    with pytest.raises(ValueError, match=rf"{name}={value}".replace("[", r"\[").replace("]", r"\]")):
        ActionLandscape(**changes)


def test_importing_the_pictures_module_changes_no_matplotlib_setting() -> None:
    script = (
        "import matplotlib; before = dict(matplotlib.rcParams); import dqs_callbacks, dqs_callbacks.pictures;"
        "assert dict(matplotlib.rcParams) == before"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)
