"""Gymnasium environments as one batched TorchRL environment."""

import copy
import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import Any, ClassVar

import gymnasium
import mujoco
import numpy as np
import torch
from gymnasium.envs.registration import load_env_creator
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.nn.functional import interpolate
from torchrl.envs import EnvBase

from dqs_lightning.envs.base import Batch, Environment, EnvironmentFailure, chosen, constructing, one_line
from dqs_lightning.envs.goals import Goals
from dqs_lightning.envs.interface import Interface, period, top_modules
from dqs_lightning.envs.spaces import ActionBox, FlatObservation, check_finite
from dqs_lightning.registry import nearest

RGB = "rgb_array"
"""Gymnasium's name of the mode in which `render` returns a picture."""


class Gym(Environment):
    """A Gymnasium environment with a bounded continuous action; its observations and actions are flattened.

    Observations may be a Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these, and become float32
    (see `gymnasium.spaces.utils.flatten`); images are refused. The action must be a Box of floats, of any shape.

    Args:
        id: the registered id, such as Pendulum-v1. In `module:Name-v0`, the module is not imported: it must have
            registered the name already.
        action_repeat: frames for each action; >= 1. It ends with the episode. Frames that the environment itself
            skips count as one.
        kwargs: further arguments of `gymnasium.make`: the environment's own, and `max_episode_steps`.
        action_low: value that -1 is mapped to, one number or one for each dimension of the flat action: for an
            environment without finite bounds of its own. Where those are narrower, they hold.
        action_high: value that 1 is mapped to.

    Raises:
        ValueError: when Gymnasium knows no such id, or a bound is not finite. `make` raises it when the environment
            cannot be constructed, or has spaces other than those above.
    """

    defaults: ClassVar[dict[str, Any]] = {}
    """Arguments of `gymnasium.make` where `kwargs` has no others."""

    def __init__(
        self,
        id: str = "Pendulum-v1",
        action_repeat: int = 1,
        kwargs: dict[str, Any] | None = None,
        action_low: float | list[float] | None = None,
        action_high: float | list[float] | None = None,
    ) -> None:
        super().__init__(action_repeat)
        check_finite(action_low=action_low, action_high=action_high)
        module, _, registered = id.rpartition(":")
        if registered not in gymnasium.registry:
            if module:
                raise ValueError(
                    f"id={id}: {registered} is not registered with Gymnasium; {module} must be a package with an "
                    "entry point of dqs_lightning.components, or be named by --trust on the command line"
                )
            hint = nearest(id, gymnasium.registry)
            raise ValueError(f"id={id}: not registered with Gymnasium{f'; did you mean {hint}?' if hint else ''}")
        self.id, self.kwargs = id, kwargs
        self.action_low, self.action_high = action_low, action_high
        self._spec = gymnasium.registry[registered]  # another process may not have registered it

    @property
    def name(self) -> str:
        return self.id.rpartition(":")[2].replace("/", "-")

    def make(self, num_envs: int, seed: int) -> EnvBase:
        with constructing(f"id={self.id}"), ExitStack() as opened:
            made = [opened.enter_context(closing(self._make_one())) for _ in range(num_envs)]
            batch = GymBatch(self, made, seed)
            opened.pop_all()
        return batch

    def hindsight_goals(self) -> Goals:
        with constructing(f"id={self.id}"):
            env = self._make_one()
            env.reset(seed=0)
            return Goals(env)

    def interface(self) -> Interface:
        with constructing(f"id={self.id}"), closing(self._make_one()) as env:
            box = ActionBox(env.action_space, self.action_low, self.action_high)
            frame_s = env.get_wrapper_attr("dt") if env.has_wrapper_attr("dt") else None
            modules = top_modules(type(env.unwrapped))
            if isinstance(getattr(env.unwrapped, "model", None), mujoco.MjModel):
                modules += ("mujoco",)
            parts = FlatObservation(env.observation_space).parts()
            return Interface(parts, *box.bounds(), period(frame_s, self.action_repeat), modules)

    def _make_one(self) -> gymnasium.Env[Any, Any]:
        if str(self._spec.entry_point).startswith("gymnasium_robotics"):
            _compare_joint_types_with_numpy()
        kwargs = {**self.defaults, **copy.deepcopy(self.kwargs or {})}
        if self._draws():
            kwargs.setdefault("render_mode", RGB)
        return gymnasium.make(self._spec, **kwargs)

    def _draws(self) -> bool:
        """Whether its class can draw, which costs nothing until it does."""
        creator: Any = self._spec.entry_point
        creator = load_env_creator(creator) if isinstance(creator, str) else creator
        modes = getattr(creator, "metadata", {}).get("render_modes", ())
        return RGB in modes and "render_mode" in inspect.signature(creator).parameters


class GymBatch(Batch):
    """Copies of one Gymnasium environment, stepped in turn, written into one TensorDict.

    The step that ends an episode returns its final observation. The member then rests, with reward 0, until it is
    reset. Its first reset is seeded with seed + index, later ones continue its random stream.

    Args:
        gym: what the copies are of.
        envs: the copies.
        seed: of the first member.

    Raises:
        EnvironmentFailure: when a member raises, or returns an observation that its space does not have.
    """

    def __init__(self, gym: Gym, envs: Sequence[gymnasium.Env[Any, Any]], seed: int) -> None:
        observation = FlatObservation(envs[0].observation_space)
        action = ActionBox(envs[0].action_space, gym.action_low, gym.action_high)
        super().__init__(len(envs), observation.size, action.size)
        self._name, self._envs, self._repeat = gym.id, envs, gym.action_repeat
        self._flat, self._box = observation, action
        self._last = [np.zeros(observation.size, np.float32)] * len(envs)
        self._terminated, self._truncated = np.zeros((2, len(envs), 1), bool)
        self._running = list(range(len(envs)))
        self._none: Any = 0.0
        """Reward of a member that rests."""
        self._size, self._cpu = self.batch_size, self.device
        self._set_seed(seed)
        self.is_closed = False

    number: Callable[[Any], Any] = staticmethod(float)
    """Converts the reward of an environment's step to what can be added to that of another."""

    def _begin(self, members: list[int]) -> None:
        for index in members:
            seed, self._seeds[index] = self._seeds[index], None
            try:
                self._last[index] = self._flat(self._envs[index].reset(seed=seed)[0])
            except Exception as error:
                raise self._failure(index, "reset", error) from error
            self._end(index, False, False)

    def _end(self, index: int, terminated: bool, truncated: bool) -> None:
        self._terminated[index], self._truncated[index] = terminated, truncated
        self._running = np.flatnonzero(~(self._terminated | self._truncated)).tolist()

    def _observed(self) -> dict[str, Tensor]:
        rows = np.concatenate(self._last, dtype=np.float32, casting="unsafe").reshape(len(self._last), -1)
        return {"observation": torch.from_numpy(rows)}

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        self._begin(chosen(tensordict, len(self._envs)).nonzero().flatten().tolist())
        return self._result()

    def _step_proc_data(self, next_tensordict_out: TensorDictBase) -> TensorDictBase:
        return next_tensordict_out  # TorchRL completes flags and shapes here; `_step` has them all

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        actions = self._box(tensordict.get("action"))
        rewards, index = [self._none] * len(self._envs), 0
        try:
            for index in self._running:
                rewards[index] = self._advance(index, actions[index, ...])
        except Exception as error:
            raise self._failure(index, "step", error) from error
        return self._result(reward=torch.from_numpy(np.array(rewards, np.float32).reshape(len(rewards), -1)))

    def _result(self, **entries: Tensor) -> TensorDictBase:
        """Returns what `_transition` does, with fewer calls of torch: they slow down the steps beside them."""
        entries |= self._observed()
        entries["terminated"] = torch.from_numpy(self._terminated.copy())
        entries["truncated"] = torch.from_numpy(self._truncated.copy())
        entries["done"] = torch.from_numpy(self._terminated | self._truncated)
        return TensorDict._new_unsafe(entries, self._size, self._cpu)

    def _advance(self, index: int, action: np.ndarray) -> Any:
        """Rewards of the frames of one action, summed."""
        step, left = self._envs[index].step, self._repeat - 1
        observation, reward, terminated, truncated, _ = step(action.copy() if left else action)
        total = self.number(reward)
        while left and not (terminated or truncated):
            left -= 1
            observation, reward, terminated, truncated, _ = step(action.copy())
            total += self.number(reward)
        if terminated or truncated:
            self._end(index, bool(terminated), bool(truncated))
        self._last[index] = self._flat(observation)
        return total

    def render(self, index: int = 0, height: int = 240, width: int = 320) -> np.ndarray:
        """RGB picture [height, width, 3], uint8, of one member, in the middle of black where its shape is another."""
        picture = self._envs[index].render()
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.shape[2:] != (3,):
            raise TypeError(
                f"{self._name} draws no RGB picture; its class must have rgb_array in metadata['render_modes'], and "
                "an argument render_mode"
            )
        rows, columns = picture.shape[:2]
        scale = min(height / rows, width / columns)
        size = max(1, round(scale * rows)), max(1, round(scale * columns))
        pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1).unsqueeze(0).float()
        scaled = interpolate(pixels, size, mode="area").squeeze(0).permute(1, 2, 0).round().byte().numpy()
        whole = np.zeros((height, width, 3), np.uint8)
        top, left = (height - size[0]) // 2, (width - size[1]) // 2
        whole[top : top + size[0], left : left + size[1]] = scaled
        return whole

    def _failure(self, index: int, call: str, error: Exception) -> EnvironmentFailure:
        return EnvironmentFailure(f"{self._name}: environment {index} failed in {call}: {one_line(error)}")

    def _set_seed(self, seed: int | None) -> None:
        self._seeds = [None if seed is None else seed + index for index in range(len(self._envs))]

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Closes all members, the others too where one fails to."""
        if not self.is_closed:
            super().close(raise_if_closed=raise_if_closed)
            with ExitStack() as stack:
                for env in self._envs:
                    stack.callback(env.close)


def _compare_joint_types_with_numpy() -> None:
    """Makes MuJoCo's joint types equal to NumPy integers again, for this process.

    They have been unequal since MuJoCo 3.12, and gymnasium-robotics 1.4.2 fails with an AssertionError because of it.
    """
    joint = mujoco.mjtJoint
    if np.int32(joint.mjJNT_HINGE) not in (joint.mjJNT_HINGE,):
        own = joint.__eq__
        joint.__eq__ = lambda self, other: own(self, int(other) if isinstance(other, np.integer) else other)
