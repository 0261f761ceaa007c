"""Environment factories, which make batched TorchRL environments."""

from dqs_lightning.envs.base import Environment, EnvironmentFailure
from dqs_lightning.envs.brax import Brax
from dqs_lightning.envs.dm_control import DMControl
from dqs_lightning.envs.gym import Gym
from dqs_lightning.envs.maze import Maze
from dqs_lightning.envs.mixture import MixtureNavigation
from dqs_lightning.envs.mo_gym import MOGym
from dqs_lightning.envs.multi_task import MultiTask
from dqs_lightning.envs.navigation import Navigation
from dqs_lightning.envs.objectives import Objectives
from dqs_lightning.envs.objectives_maze import ObjectivesMaze
from dqs_lightning.envs.playground import Playground
from dqs_lightning.envs.point_maze import PointMaze
from dqs_lightning.envs.targets import Targets
from dqs_lightning.envs.transforms import Transform

__all__ = [
    "Brax",
    "DMControl",
    "Environment",
    "EnvironmentFailure",
    "Gym",
    "MOGym",
    "Maze",
    "MixtureNavigation",
    "MultiTask",
    "Navigation",
    "Objectives",
    "ObjectivesMaze",
    "Playground",
    "PointMaze",
    "Targets",
    "Transform",
]
