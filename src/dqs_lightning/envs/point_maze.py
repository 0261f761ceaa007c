"""The point maze of gymnasium-robotics, in which goals are not observed."""

import importlib.util
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch
from mujoco import MjData, MjModel, mj_getState, mj_setState, mj_stateSize, mjtState
from scipy.ndimage import label
from tensordict import TensorDictBase
from torch import Tensor

from dqs_lightning.envs.interface import Interface, Part, period
from dqs_lightning.envs.navigation import Navigation, NavigationBatch, Points
from dqs_lightning.ranges import Count, checked

TWO_GOALS = (
    "111111111",
    "1g0000101",
    "101100101",
    "100000101",
    "1000r0001",
    "101000001",
    "101100101",
    "1000011g1",
    "111111111",
)
WALL, FREE, START, GOAL = "10rg"
START_NOISE = 0.25
"""Episodes start within a square of twice this side around the start cell's center, as gymnasium-robotics has it."""
FRAME_S = 0.01
"""Duration of a frame, which gymnasium-robotics fixes."""
TOP_SPEED = 5.0
"""To which gymnasium-robotics clips each dimension's velocity before a frame, in cells/s."""
WHOLE_STATE = mjtState.mjSTATE_INTEGRATION
"""MuJoCo's state with the solver's warm start."""


class PointMaze(Navigation):
    """A ball pushed by a force (x, y) through a maze of square cells of side 1, which are drawn as a map.

    gymnasium-robotics' `PointMaze_UMaze-v3` with the map given. The observation is the position, over half the map's
    width and height, and the velocity, over 5 (its limit): all about [-1, 1]. Goals are not observed. The reward is 1
    on arrival within 0.45 of the center of any goal, which ends the episode, and 0 before; gymnasium-robotics itself
    has one goal, drawn for each episode, which is not used here.

    A frame is 0.01 s, and a goal of the default map is about 6 cells away: 1.5 s or more. With the default repeat an
    episode has 60 decisions, each of which moves the ball by at most half a cell.

    Args:
        maze_map: rows of equally many characters, from the top: 1 wall, 0 free, r start (one), g goal (one or more).
        horizon: frames until an episode is truncated; >= 1.
        action_repeat: frames for each action; >= 1. A goal reached within them ends the step.
        label: name of the map, for run directories.

    Raises:
        ValueError: for a map that is none, numbers out of range, or where gymnasium-robotics is not installed.
    """

    goal_radius = 0.45

    @checked
    def __init__(
        self,
        maze_map: Sequence[str] = TWO_GOALS,
        horizon: Count = 600,
        action_repeat: int = 10,
        label: str = "point-maze-two-goals",
    ) -> None:
        super().__init__(action_repeat)
        _check(maze_map)
        if importlib.util.find_spec("gymnasium_robotics") is None:
            raise ValueError('PointMaze needs gymnasium-robotics: pip install "dqs-lightning[robotics]"')
        self.maze_map, self.horizon, self.label = maze_map, horizon, label
        self.half_size = (len(maze_map[0]) / 2, len(maze_map) / 2)
        (width, height), walls = self.half_size, self._cells(WALL)
        self.extent = (-width, width, -height, height)
        self.goals = self._cells(GOAL)
        self.start = self._cells(START)[0]
        self.blocks = [(x - 0.5, x + 0.5, y - 0.5, y + 0.5) for x, y in walls]
        self.obstacles = self._islands()

    def make(self, num_envs: int, seed: int) -> "PointMazeBatch":
        return PointMazeBatch(self, num_envs, seed)

    def interface(self) -> Interface:
        seconds = period(FRAME_S, self.action_repeat)
        parts = Part("position", 2), Part("velocity", 2)
        return Interface(parts, control_period_s=seconds, modules=("gymnasium_robotics", "mujoco"))

    def _center(self, row: int, column: int) -> tuple[float, float]:
        return column + 0.5 - self.half_size[0], self.half_size[1] - row - 0.5

    def _cells(self, kind: str) -> list[tuple[float, float]]:
        rows = enumerate(self.maze_map)
        return [self._center(i, j) for i, row in rows for j, found in enumerate(row) if found == kind]

    def _islands(self) -> Points:
        """Returns the center of one cell of each inner piece of wall; pieces that touch at a corner are one."""
        pieces, count = label([[cell == WALL for cell in row] for row in self.maze_map], np.ones((3, 3)))
        first = (np.argwhere(pieces == piece)[0].tolist() for piece in range(1, count + 1) if piece != pieces[0, 0])
        return [self._center(row, column) for row, column in first]

    def model(self) -> MjModel:
        """gymnasium-robotics' model of the map."""
        with redirect_stderr(StringIO()):  # where it prints notices on environments of other kinds
            from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv
        cells = [[int(cell) if cell in WALL + FREE else cell for cell in row] for row in self.maze_map]
        env = PointMazeEnv(maze_map=cells)
        Path(env.tmp_xml_file_path).unlink(missing_ok=True)  # which it leaves behind
        return env.model


def _check(maze_map: Sequence[str]) -> None:
    shown, text = "/".join(maze_map), "".join(maze_map)
    if len(maze_map) < 3 or len(maze_map[0]) < 3 or len({len(row) for row in maze_map}) > 1:
        raise ValueError(f"maze_map={shown}: must be 3 or more rows, all equally long, of 3 or more cells")
    if unknown := set(text) - {WALL, FREE, START, GOAL}:
        raise ValueError(f"maze_map={shown}: {min(unknown)!r} is none of 1 wall, 0 free, r start, g goal")
    if text.count(START) != 1 or GOAL not in text:
        raise ValueError(f"maze_map={shown}: must have exactly one r (start) and one or more g (goals)")
    border = maze_map[0] + maze_map[-1] + "".join(row[0] + row[-1] for row in maze_map)
    if set(border) != {WALL}:
        raise ValueError(f"maze_map={shown}: must have a border of walls (1) alone")


class PointMazeBatch(NavigationBatch):
    """num_envs balls of a `PointMaze`, simulated in turn on one model, written into one TensorDict.

    Bitwise the dynamics of gymnasium-robotics, at about half its cost: MuJoCo is called directly.
    """

    def __init__(self, maze: PointMaze, num_envs: int, seed: int) -> None:
        super().__init__(maze, num_envs, seed, unit=(*maze.half_size, TOP_SPEED, TOP_SPEED))
        self.maze = maze
        self._model = maze.model()
        self._balls = [MjData(self._model) for _ in range(num_envs)]
        self._frames = [0] * num_envs

    def _place(self, members: list[int], uniform: Tensor) -> None:
        for index, noise in zip(members, uniform.numpy(), strict=True):
            ball = self._balls[index]
            mujoco.mj_resetData(self._model, ball)
            ball.qpos[:] = np.array(self.maze.start) + START_NOISE * (2 * noise - 1)
            mujoco.mj_forward(self._model, ball)
            self._frames[index] = 0

    def _state(self) -> Tensor:
        return torch.from_numpy(np.array([(*ball.qpos, *ball.qvel) for ball in self._balls]))

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        for index, force in enumerate(tensordict["action"].double().numpy().clip(-1, 1)):
            self._push(index, force)
        terminated = self.maze.goal_of(self._state()[:, :2]) >= 0
        truncated = torch.tensor([[frames >= self.maze.horizon] for frames in self._frames]) & ~terminated
        return self._transition(terminated, truncated, reward=terminated.float())

    def _push(self, index: int, force: np.ndarray) -> None:
        model, ball, reach = self._model, self._balls[index], self.maze.goal_radius**2
        position, velocity, control = ball.qpos, ball.qvel, ball.ctrl
        for _ in range(self.maze.action_repeat):
            # As gymnasium-robotics: a forward pass with the clipped velocity and the old force, which changes the
            # solver's warm start, then the step, without its first half, which the pass has just done.
            velocity.clip(-TOP_SPEED, TOP_SPEED, out=velocity)
            mujoco.mj_forward(model, ball)
            control[:] = force
            mujoco.mj_step2(model, ball)
            self._frames[index] += 1
            x, y = position.tolist()
            arrived = any((x - goal[0]) ** 2 + (y - goal[1]) ** 2 <= reach for goal in self.maze.goals)
            if arrived or self._frames[index] >= self.maze.horizon:
                break

    def snapshot(self) -> dict[str, Any]:
        states = torch.zeros(len(self._balls), mj_stateSize(self._model, WHOLE_STATE), dtype=torch.float64)
        for ball, state in zip(self._balls, states.numpy(), strict=True):
            mj_getState(self._model, ball, state, WHOLE_STATE)
        return {**super().snapshot(), "physics": states, "frames": list(self._frames)}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        for ball, physics in zip(self._balls, state["physics"].numpy(), strict=True):
            mj_setState(self._model, ball, physics, WHOLE_STATE)
        self._frames = list(state["frames"])

    def render(self, index: int = 0, height: int = 240, width: int = 320) -> np.ndarray:
        """RGB picture [height, width, 3], uint8, of one member from above; needs MUJOCO_GL=egl or osmesa."""
        camera = mujoco.MjvCamera()
        camera.azimuth, camera.elevation, camera.distance = 90, -90, 2.6 * max(self.maze.half_size)
        self._model.site("target").rgba[3] = 0  # gymnasium-robotics' own goal
        with mujoco.Renderer(self._model, height, width) as renderer:
            renderer.update_scene(self._balls[index], camera)
            for x, y in self.maze.goals:
                where, size, colour = np.array([x, y, 0.0]), np.full(3, 0.2), np.array([1, 0, 0, 0.7], np.float32)
                geom = renderer.scene.geoms[renderer.scene.ngeom]
                mujoco.mjv_initGeom(geom, mujoco.mjtGeom.mjGEOM_SPHERE, size, where, np.eye(3).ravel(), colour)
                renderer.scene.ngeom += 1
            return np.array(renderer.render())
