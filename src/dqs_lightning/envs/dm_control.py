"""The DeepMind Control Suite as one batched TorchRL environment."""

import importlib.util
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium.spaces import Box
from mujoco import MjData, MjModel, mj_getState, mj_setState, mj_stateSize, mjMAXVAL, mjtState
from tensordict import TensorDictBase

from dqs_lightning.envs.base import Batch, Environment, constructing, one_line
from dqs_lightning.envs.interface import Interface, Part, period
from dqs_lightning.envs.spaces import ActionBox, check_finite
from dqs_lightning.registry import nearest

if TYPE_CHECKING:
    from dm_env import TimeStep

INSTALLED = importlib.util.find_spec("dm_control") is not None
NOT_INSTALLED = "needs dm_control, which requires Python 3.11 or 3.12: its labmaze has no wheel for 3.13"

if INSTALLED:
    from dm_env import StepType

    with warnings.catch_warnings():  # dm_control tries every renderer; GLFW warns where there is no display
        warnings.filterwarnings("ignore", module="glfw")
        from dm_control import suite
        from dm_control.rl.control import PhysicsError


class DMControl(Environment):
    """A task of the suite: flat float32 observation, action in [-1, 1], episodes of 1000 frames, never terminated.

    The tasks of lqr differ: they terminate when their state reaches zero, have no time limit, and require
    `action_low` and `action_high`, since their actions have no bounds. In all tasks, an episode in which the
    simulation diverges terminates (see `DMControlBatch`).

    Args:
        domain: as in `dm_control.suite`, such as walker.
        task: as in `dm_control.suite`, such as walk.
        action_repeat: frames for each action; >= 1.
        action_low: value that -1 is mapped to, one number or one for each dimension of the action. Where the task's
            own bounds are narrower, they hold.
        action_high: value that 1 is mapped to.

    Raises:
        ValueError: when dm_control is not installed, the suite has no such domain or task, or a bound is not finite.
            `make` raises it when the task cannot be constructed: quadruped-escape requires a renderer, MUJOCO_GL=egl.
    """

    def __init__(
        self,
        domain: str = "walker",
        task: str = "walk",
        action_repeat: int = 2,
        action_low: float | list[float] | None = None,
        action_high: float | list[float] | None = None,
    ) -> None:
        super().__init__(action_repeat)
        if not INSTALLED:
            raise ValueError(f"DMControl {NOT_INSTALLED}")
        check_finite(action_low=action_low, action_high=action_high)
        tasks = suite.TASKS_BY_DOMAIN
        for key, value, allowed in (("domain", domain, tasks), ("task", task, tasks.get(domain, ()))):
            if value not in allowed:
                hint = nearest(value, allowed)
                meant = f"; did you mean {hint}?" if hint else ""
                raise ValueError(f"{key}={value}: must be one of {', '.join(sorted(allowed))}{meant}")
        self.domain, self.task = domain, task
        self.action_low, self.action_high = action_low, action_high
        self.physics_errors = 0

    @property
    def name(self) -> str:
        return f"{self.domain}-{self.task}"

    def make(self, num_envs: int, seed: int) -> "DMControlBatch":
        with constructing(f"domain={self.domain}, task={self.task}"):
            return DMControlBatch(self, num_envs, seed)

    def interface(self) -> Interface:
        with constructing(f"domain={self.domain}, task={self.task}"):
            env = suite.load(self.domain, self.task)
            parts = tuple(Part(name, int(np.prod(part.shape))) for name, part in env.observation_spec().items())
            box = ActionBox(_action_space(env), self.action_low, self.action_high)
            seconds = period(env.control_timestep(), self.action_repeat)
            return Interface(parts, *box.bounds(), seconds, ("dm_control", "mujoco"))


class DMControlBatch(Batch):
    """num_envs copies of one suite task, stepped in turn, written into one TensorDict.

    One loop and one TensorDict for all copies is several times cheaper than one wrapped environment each.
    Members are independent: each has its own random stream, seeded with seed + index.

    A step in which the simulation diverges (`PhysicsError`) ends its member's episode as terminated, with reward 0 and
    the observation of the step before. The first one of a process is a warning.

    Args:
        control: what the copies are of.
        num_envs: number of copies.
        seed: of the first member.

    Attributes:
        physics_errors: steps in which the simulation diverged, of all members.
    """

    physics_errors = 0

    def __init__(self, control: DMControl, num_envs: int, seed: int) -> None:
        envs = [suite.load(control.domain, control.task, {"random": seed + i}) for i in range(num_envs)]
        if control.name == "quadruped-escape":  # uploads the terrain of each episode to the renderer
            _require_renderer(envs[0])
        parts = envs[0].observation_spec().values()
        width = sum(int(np.prod(part.shape)) for part in parts)
        box = ActionBox(_action_space(envs[0]), control.action_low, control.action_high)
        super().__init__(num_envs, width, box.size)
        self._control, self._envs, self._repeat = control, envs, control.action_repeat
        self._low, self._half = box.low, (box.high - box.low) / 2
        self._observation = np.zeros((num_envs, width), np.float32)
        self._saved: list[dict[str, Any]] = []

    def _write(self, index: int, step: "TimeStep") -> None:
        self._observation[index] = np.concatenate([np.ravel(part) for part in step.observation.values()])

    def _begin(self, members: list[int]) -> None:
        for index in members:
            self._write(index, self._envs[index].reset())

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        if self._restored:
            for env, saved in zip(self._envs, self._saved, strict=True):
                _restore(env, saved)
            self._saved = []
        return super()._reset(tensordict, **kwargs)

    def _observed(self) -> dict[str, torch.Tensor]:
        return {"observation": torch.from_numpy(self._observation.copy())}

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        actions = self._low + self._half * (tensordict["action"].double().numpy().clip(-1, 1) + 1)
        count = len(self._envs)
        reward = np.zeros((count, 1), np.float32)
        terminated = np.zeros((count, 1), bool)
        truncated = np.zeros((count, 1), bool)
        for index, env in enumerate(self._envs):
            try:
                step, reward[index] = self._advance(env, actions[index])
            except PhysicsError as error:
                self.physics_errors += 1
                self._control.count_diverged(1, f"environment {index}, {one_line(error)}")
                terminated[index] = True
                continue
            if step.step_type == StepType.LAST:
                # Discount 0 marks a true end in the suite; a time limit keeps discount 1.
                terminated[index], truncated[index] = step.discount == 0, step.discount != 0
            self._write(index, step)
        flags = torch.from_numpy(terminated), torch.from_numpy(truncated)
        return self._transition(*flags, reward=torch.from_numpy(reward))

    def _advance(self, env: Any, action: np.ndarray) -> "tuple[TimeStep, float]":
        total = 0.0
        for _ in range(self._repeat):
            step = env.step(action)
            total += step.reward or 0.0
            if step.step_type == StepType.LAST:
                break
        return step, total

    def _set_seed(self, seed: int | None) -> None:
        for index, env in enumerate(self._envs):
            env.task.random.seed(None if seed is None else seed + index)

    def snapshot(self) -> dict[str, Any]:
        """Everything that the next steps depend on, as tensors and plain values: simulators, clocks, random streams."""
        return {**self._observed(), "envs": [_save(env) for env in self._envs]}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a snapshot: the next `reset` returns to it, in mid-episode, instead of starting anew."""
        self._observation[:] = state["observation"].numpy()
        self._saved, self._restored = state["envs"], True

    def render(self, index: int = 0, height: int = 240, width: int = 320) -> np.ndarray:
        """RGB picture [height, width, 3], uint8, of one member; needs MUJOCO_GL=egl or osmesa."""
        return np.asarray(self._envs[index].physics.render(height, width, camera_id=0))


def _action_space(env: Any) -> Box:
    """The bounds of a task's actions; those that are MuJoCo's largest number, as in lqr, are none."""
    spec = env.action_spec()
    low, high = (
        np.where(np.abs(bound) < mjMAXVAL, bound, np.copysign(np.inf, bound)) for bound in (spec.minimum, spec.maximum)
    )
    return Box(low, high, spec.shape, np.float64)


def _require_renderer(env: Any) -> None:
    try:
        env.physics.contexts  # noqa: B018  (they are made when first looked at)
    except Exception as error:
        raise ValueError(f"needs a renderer: set MUJOCO_GL=egl before the command ({one_line(error)})") from error


def _model_arrays(model: MjModel) -> dict[str, np.ndarray]:
    """The model's float arrays without the meshes: some tasks draw targets into them at an episode's start."""
    names = (name for name in dir(model) if not name.startswith(("_", "mesh_", "skin_", "tex_", "bvh_")))
    arrays = ((name, getattr(model, name)) for name in names)
    return {name: a for name, a in arrays if isinstance(a, np.ndarray) and a.dtype.kind == "f" and a.size}


def _save(env: Any) -> dict[str, Any]:
    model: MjModel = env.physics.model.ptr
    data: MjData = env.physics.data.ptr
    state = np.zeros(mj_stateSize(model, mjtState.mjSTATE_INTEGRATION))
    mj_getState(model, data, state, mjtState.mjSTATE_INTEGRATION)
    kind, keys, position, has_gauss, gauss = env.task.random.get_state()
    return {
        "physics": torch.from_numpy(state),
        "model": {name: torch.from_numpy(np.array(array)) for name, array in _model_arrays(model).items()},
        "steps": env._step_count,
        "fresh": env._reset_next_step,
        "random": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
    }


def _restore(env: Any, state: dict[str, Any]) -> None:
    env.reset()
    model, data = env.physics.model.ptr, env.physics.data.ptr
    for name, array in _model_arrays(model).items():
        array[...] = state["model"][name].numpy()
    mj_setState(model, data, state["physics"].numpy(), mjtState.mjSTATE_INTEGRATION)
    # Derived quantities first, then the state again: the forward pass moves the solver's warm start.
    env.physics.forward()
    mj_setState(model, data, state["physics"].numpy(), mjtState.mjSTATE_INTEGRATION)
    env._step_count, env._reset_next_step = state["steps"], state["fresh"]
    kind, keys, position, has_gauss, gauss = state["random"]
    env.task.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
