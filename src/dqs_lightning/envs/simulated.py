"""Simulations in JAX, thousands of which advance in one call on their device, as one batched TorchRL environment."""

import importlib.util
import os
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Categorical, Composite
from torchrl.envs.libs.jax_utils import _ndarray_to_tensor, _tensor_to_ndarray
from torchrl.envs.libs.mujoco_playground import MujocoPlaygroundWrapper

from dqs_lightning.envs.base import Environment, chosen, constructing
from dqs_lightning.envs.interface import Interface, period
from dqs_lightning.envs.jax_episodes import Episodes, Members, Simulation
from dqs_lightning.registry import nearest


class Simulated(Environment):
    """Base class of environments that are simulations in JAX. Subclass it and write `names` and `load`.

    Args:
        env_name: name of the task.
        action_repeat: frames for each action; >= 1.
        episode_length: frames until an episode is truncated; >= 1. None: as the task itself has it.

    Attributes:
        package: that has the tasks; an extra of the same name as the class, in lower case, installs it.

    Raises:
        ValueError: when the package is not installed. `make` raises it for a task or a setting that is unknown.
    """

    package: str

    def __init__(self, env_name: str, action_repeat: int, episode_length: int | None) -> None:
        super().__init__(action_repeat)
        if importlib.util.find_spec(self.package) is None:
            name = type(self).__name__
            raise ValueError(f'{name} needs {self.package}: pip install "dqs-lightning[{name.lower()}]"')
        self.env_name, self.episode_length, self.physics_errors = env_name, episode_length, 0
        self._episodes: dict[int, Episodes] = {}
        """By number of members, since each number is compiled by itself, and takes long."""

    @property
    def name(self) -> str:
        return self.env_name

    @abstractmethod
    def names(self) -> Iterable[str]:
        """Returns the names of all tasks."""

    @abstractmethod
    def load(self) -> tuple[Simulation, int]:
        """Returns the simulation of the task, and the length of its episodes in frames."""

    def episodes(self, num_envs: int) -> Episodes:
        """Returns the compiled functions of so many members; those of an earlier call, if there was one."""
        if num_envs not in self._episodes:
            if self.env_name not in self.names():
                hint = nearest(self.env_name, self.names())
                raise ValueError(f"no such task{f'; did you mean {hint}?' if hint else ''}")
            simulation, length = self.load()
            length = self.episode_length or length
            self._episodes[num_envs] = Episodes(simulation, num_envs, self.action_repeat, length)
        return self._episodes[num_envs]

    def make(self, num_envs: int, seed: int) -> "SimulatedBatch":
        with constructing(f"env_name={self.env_name}"):
            return SimulatedBatch(self, num_envs, seed)

    def interface(self) -> Interface:
        with constructing(f"env_name={self.env_name}"):
            simulation, _ = self.load()
        seconds = period(getattr(simulation, "dt", None), self.action_repeat)
        return Interface(control_period_s=seconds, modules=(self.package, "jax"))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_episodes": {}}  # another process compiles for itself


class SimulatedBatch(MujocoPlaygroundWrapper):
    """n simulations on JAX's device, which advance in one call; their observations are passed on without a copy.

    Extends TorchRL's wrapper, which can also wrap Brax, by what it lacks: members that are reset one by one, time
    limits, repeated actions, and snapshots. New episodes are computed for all members and kept for those that are
    reset, as in MuJoCo Playground's `full_reset`.

    Args:
        environment: makes the simulations, and counts those that diverge.
        num_envs: n.
        seed: of the first member; that of member i is seed + i.
    """

    batch_locked = True

    def __init__(self, environment: "Simulated", num_envs: int, seed: int) -> None:
        self._environment = environment
        self._restored: list[Tensor] | None = None
        super().__init__(env=environment.episodes(num_envs), device=simulator_device(), batch_size=[num_envs])
        flag = Categorical(2, shape=(num_envs, 1), dtype=torch.bool, device=self.device)
        flags = {name: flag.clone() for name in ("done", "terminated", "truncated")}
        self.full_done_spec = Composite(**flags, shape=(num_envs,), device=self.device)
        self._set_seed(seed)

    def _init_env(self) -> None:
        self._current_state: Members | None = None
        self._vmap_jit_env_step = self._env.compiled_step

    def _set_seed(self, seed: int | None) -> None:
        keys = self._env.keys(0 if seed is None else seed)
        self._keys = self.jax.device_put(keys, self.jax.local_devices()[self.device.index or 0])

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        found = super()._step(tensordict)
        assert self._current_state is not None
        found["truncated"] = _ndarray_to_tensor(self._current_state.truncated).view(-1, 1)
        found["done"] = found["terminated"] | found["truncated"]
        return found

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        new = self._env.compiled_reset(self._keys) if self._restored is None else self._from_tensors(self._restored)
        if self._current_state is None:  # compiles the step, for which a first reset has more time than a step
            none = _tensor_to_ndarray(self.action_spec.zero())
            self.jax.block_until_ready(self._vmap_jit_env_step(new[0], none))
        elif self._restored is None:
            mask = _tensor_to_ndarray(chosen(tensordict, self.batch_size[0]).to(self.device))
            self._environment.count_diverged(int((self._current_state.diverged & mask).sum()))
            new = self._env.compiled_merge(mask, new, (self._current_state, self._keys))
        (self._current_state, self._keys), self._restored = new, None
        none = torch.zeros(*self.batch_size, 1, dtype=torch.bool, device=self.device)
        found = self._extract_obs(self._current_state)
        flags = {name: none.clone() for name in ("done", "terminated", "truncated")}
        return self.full_done_spec.zero().update(found | flags)

    def snapshot(self) -> dict[str, Any]:
        """Everything that the next steps depend on, as tensors: states of the simulations, clocks, random keys."""
        leaves = self.jax.tree.leaves((self._current_state, self._keys))
        return {"leaves": [torch.from_numpy(_signed(np.array(leaf))) for leaf in leaves]}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a snapshot: the next `reset` returns to it, in mid-episode, instead of starting anew."""
        self._restored = state["leaves"]

    def _from_tensors(self, tensors: list[Tensor]) -> Any:
        """Returns the members and keys of a snapshot; the structure is that of new episodes, which are not computed."""
        shapes, tree = self.jax.tree.flatten(self.jax.eval_shape(self._env.reset, self._keys))
        arrays = (tensor.numpy().view(shape.dtype) for tensor, shape in zip(tensors, shapes, strict=True))
        return self.jax.device_put(tree.unflatten(arrays), next(iter(self._keys.devices())))

    def render(self, index: int = 0, height: int = 240, width: int = 320) -> np.ndarray:
        """RGB picture [height, width, 3], uint8, of one member; needs MUJOCO_GL=egl or osmesa."""
        assert self._current_state is not None
        state = self.jax.tree.map(lambda leaf: leaf[index], self._current_state.state)
        shown = getattr(state, "pipeline_state", state)  # Brax draws the physics alone
        return np.asarray(self._env.simulation.render(shown, height=height, width=width))


def simulator_device() -> torch.device:
    """Returns torch's name of the device on which JAX simulates; on several GPUs each rank has its own."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX would take most of the memory of a GPU
    import jax

    on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def _signed(array: np.ndarray) -> np.ndarray:
    """Returns the same bytes as signed integers where they are unsigned ones, which checkpoints do not hold."""
    return array.view(array.dtype.str.replace("u", "i")) if array.dtype.kind == "u" else array
