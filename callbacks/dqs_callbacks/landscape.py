"""Pictures of Q over the actions of some states, with samples of the policy."""

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import lightning as L
import matplotlib
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure
from torch import Tensor

from dqs_callbacks.periodic import Periodic
from dqs_callbacks.pictures import STYLE, publish
from dqs_lightning.agents import DQS, Agent
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.diffusion import Tanh
from dqs_lightning.ranges import Count, CountOrZero, Finite, at_least, checked

CELLS = 81
"""Points a side at which Q is evaluated."""
MASSES = (0.9, 0.5)
"""Shares of exp(Q/T) that are enclosed by lines."""
SAMPLE = "#D55E00"
FRAMES, REST, FPS, GIF_DPI = 30, 15, 12, 90
"""Steps of the sampler in the animation, pictures after the last one, pictures a second, dots an inch."""
VIEW = 1.5
"""Half widths of the action set that the animation shows, since noise begins outside."""


@dataclass(frozen=True)
class Landscape:
    """Q on a plane through the actions of one state.

    Attributes:
        center: a point of the plane [d].
        axes: two orthonormal directions [2, d].
        grid: coordinates on either axis [CELLS].
        q_value: [CELLS, CELLS], first axis first; NaN outside the action set.
        actions: samples of the policy in coordinates of the plane [n, 2].
        trails: the sampler's points from noise to action, in these coordinates [steps + 1, k, 2]; k = 0 without one.
        temperature: T of a policy that is meant to be exp(Q/T); None of others.
        exact: whether the plane is the whole action set.
    """

    center: Tensor
    axes: Tensor
    grid: Tensor
    q_value: Tensor
    actions: Tensor
    trails: Tensor
    temperature: float | None
    exact: bool


class ActionLandscape(Periodic):
    """Draws Q over the actions of some states, with samples of the policy, into pictures/landscape_<frames>.png.

    With two action dimensions the plane is the action set, and lines enclose 50 and 90 % of exp(Q/T), by quadrature:
    half of the samples belong within the inner one. With more, the plane goes through the samples' mean along their
    two leading directions, and the lines are left out. Thin lines are paths of the sampler from noise to action; agents
    without one are drawn without them, and of agents without Q nothing is drawn. Needs at least two action dimensions.

    Args:
        every_frames: environment frames between pictures; >= 1.
        observations: the states; null: `states` starts of episodes.
        states: how many, where none are given; >= 1.
        samples: actions drawn at each; >= 2.
        trails: how many of the sampler's paths are drawn; >= 0.
        animate: when the run is finished, write pictures/denoising.gif: noise that becomes actions at these states.
    """

    @checked
    def __init__(
        self,
        every_frames: Count = 10_000,
        observations: Sequence[Sequence[Finite]] | None = None,
        states: Count = 3,
        samples: Annotated[int, at_least(2)] = 300,
        trails: CountOrZero = 5,
        animate: bool = False,
    ) -> None:
        super().__init__(every_frames)
        if observations is not None and (not observations or len({len(o) for o in observations}) != 1):
            raise ValueError(f"observations={observations}: must be one or more of the same length, or null")
        self.observations, self.states = observations, states
        self.samples, self.trails, self.animate = samples, trails, animate

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Agent)
        name, problem = OnlineData.of(trainer).environment.name, None
        if pl_module.action_dim < 2:
            problem = f" needs at least two action dimensions; {name} has {pl_module.action_dim}"
        elif self.observations and len(self.observations[0]) != pl_module.observation_dim:
            problem = f".observations have {len(self.observations[0])} numbers; {name} has {pl_module.observation_dim}"
        if problem:
            raise MisconfigurationException(f"trainer.callbacks: ActionLandscape{problem}")

    def measure(self, trainer: L.Trainer, agent: Agent, seed: int) -> None:
        if not agent.has_q:
            return
        data = OnlineData.of(trainer)
        if self.observations is None:
            with closing(data.make_environment(self.states, seed % 1000)) as env:
                observation = env.reset()["observation"]
        else:
            observation = torch.tensor([list(o) for o in self.observations])
        observation = observation.to(agent.device)
        # The numbers of a state, if they are few.
        titles = [f"s = ({', '.join(f'{x:.2f}' for x in s.tolist())})" if len(s) <= 4 else "" for s in observation]
        found = [landscape(agent, state, self.samples, self.trails) for state in observation]
        publish(trainer, f"landscape_{data.env_frames}", lambda: draw(found, titles))
        if self.animate and isinstance(agent, DQS) and data.env_frames >= data.total_frames:
            slow = [landscape(agent, state, self.samples, self.samples, steps=FRAMES) for state in observation]
            with matplotlib.rc_context(STYLE):
                animate(slow, titles, Path(trainer.default_root_dir) / "pictures" / "denoising.gif")


@torch.no_grad()
def landscape(agent: Agent, state: Tensor, samples: int, trails: int, steps: int | None = None) -> Landscape:
    """Computes what is drawn for one state [o]; steps: of the sampler, None for the agent's own number."""
    observation, temperature = state.unsqueeze(0), None
    if isinstance(agent, DQS):
        temperature = float(agent.temperature())
        diffusion = agent.diffusion.with_steps(steps) if steps else agent.diffusion
        trajectory = diffusion.trajectory(
            agent.condition(agent.observation_norm(observation), agent.temperature()), samples
        )
        actions, walk = trajectory.action[:, 0], torch.cat([trajectory.x, trajectory.end.unsqueeze(0)])[:, :, 0]
        walk = diffusion.support.to_action(walk) if isinstance(diffusion.support, Tanh) else walk
    else:
        actions = agent.sample(observation, samples)[:, 0]
        walk = actions[None, :0]
    exact = agent.action_dim == 2
    center, axes, reach = actions.new_zeros(agent.action_dim), torch.eye(2, agent.action_dim).to(actions), 1.0
    if not exact:
        center = actions.mean(0)
        axes = torch.linalg.svd(actions - center, full_matrices=False).Vh[:2]
        reach = 1.3 * float(((actions - center) @ axes.T).abs().max())
    grid = torch.linspace(-reach, reach, CELLS).to(actions)
    plane = center + torch.cartesian_prod(grid, grid) @ axes
    q_value = agent.q_value(observation, plane.unsqueeze(1)).squeeze(1)
    q_value[(plane.abs() > 1 + 1e-6).any(-1)] = math.nan
    return Landscape(
        center.cpu(),
        axes.cpu(),
        grid.cpu(),
        q_value.reshape(CELLS, CELLS).cpu(),
        ((actions - center) @ axes.T).cpu(),
        ((walk[:, :trails] - center) @ axes.T).cpu(),
        temperature,
        exact,
    )


def mass_levels(density: Tensor, masses: Sequence[float] = MASSES) -> list[float]:
    """Densities whose superlevel sets on the grid hold these shares of it: the smallest regions that do."""
    falling = density.flatten().sort(descending=True).values
    share = falling.cumsum(0) / falling.sum()
    return [float(falling[int((share < mass).sum())]) for mass in masses]


def panels(landscapes: Sequence[Landscape], titles: Sequence[str], height: float) -> tuple[Figure, list[Any]]:
    """A figure with one panel a state: Q in colour, and lines of exp(Q/T)."""
    figure = Figure(figsize=(3.3 * len(landscapes), height), layout="constrained")
    axes = list(figure.subplots(1, len(landscapes), squeeze=False)[0])
    for axis, found, title in zip(axes, landscapes, titles, strict=True):
        grid, q_value = found.grid.numpy(), found.q_value
        mesh = axis.pcolormesh(grid, grid, q_value.T.numpy(), cmap="cividis", shading="nearest", rasterized=True)
        figure.colorbar(mesh, ax=axis, shrink=0.9, label="Q(s, a)")
        if found.exact and found.temperature is not None:
            density = ((q_value - q_value.max()) / found.temperature).exp()
            levels = mass_levels(density)
            if levels[0] < levels[1]:
                axis.contour(grid, grid, density.T.numpy(), levels=levels, colors="white", linewidths=(0.8, 1.4))
        names = ("action 1", "action 2") if found.exact else ("first leading direction", "second leading direction")
        ends = float(grid[0]), float(grid[-1])
        axis.set(xlim=ends, ylim=ends, aspect="equal", title=title, xlabel=names[0], ylabel=names[1])
    return figure, axes


def draw(landscapes: Sequence[Landscape], titles: Sequence[str]) -> Figure:
    """`panels` with the samples and the sampler's paths."""
    warm = ["" if found.temperature is None else f"  T = {found.temperature:.3g}" for found in landscapes]
    figure, axes = panels(landscapes, [title + t for title, t in zip(titles, warm, strict=True)], height=2.7)
    for axis, found in zip(axes, landscapes, strict=True):
        for trail in found.trails.unbind(1):
            axis.plot(*trail.T.tolist(), color="black", linewidth=0.5, alpha=0.5)
        axis.scatter(*found.actions.T.tolist(), s=5, color=SAMPLE, linewidths=0, alpha=0.8)
    return figure


def animate(landscapes: Sequence[Landscape], titles: Sequence[str], file: Path) -> None:
    """All trails at once, as a GIF: one picture a step of the sampler, and a rest at the end."""
    figure, axes = panels(landscapes, titles, height=2.8)
    points = []
    for axis, found in zip(axes, landscapes, strict=True):
        reach = VIEW * float(found.grid[-1])
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach), facecolor="0.92")
        points.append(axis.scatter(*found.trails[0].T.tolist(), s=6, color=SAMPLE, linewidths=0))

    def show(step: int) -> list[Any]:
        for dots, found in zip(points, landscapes, strict=True):
            dots.set_offsets(found.trails[min(step, len(found.trails) - 1)].numpy())
        return points

    last = len(landscapes[0].trails)
    FuncAnimation(figure, show, frames=last + REST, blit=False).save(file, PillowWriter(fps=FPS), dpi=GIF_DPI)
