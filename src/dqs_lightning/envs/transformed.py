"""Environments whose observations pass through transforms."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Unbounded
from torchrl.envs import Compose, EnvBase, TransformedEnv

from dqs_lightning.envs.base import Environment, chosen, one_line
from dqs_lightning.envs.interface import Interface
from dqs_lightning.envs.multi_task import MultiTask
from dqs_lightning.envs.transforms import OBSERVATION, Transform
from dqs_lightning.envs.watched import adopt_specs, specs_of


class TransformError(ValueError):
    """A transform that does not fit an environment; the message begins with its key in `OnlineData`."""


def transformed(environment: Environment, transforms: Sequence[Transform]) -> Environment:
    """Returns an environment factory whose observations pass through transforms; the environment itself without any.

    Of several tasks, those of each task do, before they are padded.
    """
    if transforms and isinstance(environment, MultiTask):
        return environment.each(lambda task: _Transformed(task, transforms))
    return _Transformed(environment, transforms) if transforms else environment


class _Transformed(Environment):
    """See `transformed`. It is no component of its own: a configuration names the environment and the transforms."""

    def __init__(self, environment: Environment, transforms: Sequence[Transform]) -> None:
        super().__init__(environment.action_repeat)
        self._environment, self._transforms = environment, transforms

    @property
    def untransformed(self) -> Environment:
        return self._environment.untransformed

    @property
    def name(self) -> str:
        return self._environment.name

    def interface(self) -> Interface:
        found = self._environment.interface()
        parts = found.observation
        for transform in self._transforms:
            if OBSERVATION in transform.in_keys:
                parts = transform.parts(parts)
        return replace(found, observation=parts)

    def make(self, num_envs: int, seed: int) -> EnvBase:
        base = self._environment.make(num_envs, seed)
        try:
            return TransformedBatch(base, self._transforms)
        except BaseException:
            base.close(raise_if_closed=False)
            raise


class TransformedBatch(EnvBase):
    """A batched environment whose observations pass through TorchRL's transforms.

    Rewards are the environment's own, so that returns are too; `transform_rewards` changes those that an agent learns
    from. A snapshot has the states of the transforms, such as earlier observations.

    Args:
        base: the environment.
        transforms: in the order in which they are applied; those of the reward alone are skipped.

    Raises:
        TransformError: for a transform that fails on the environment's observations, or changes more than these.
    """

    batch_locked = True

    def __init__(self, base: EnvBase, transforms: Sequence[Transform]) -> None:
        super().__init__(device=base.device, batch_size=base.batch_size)
        self._inner = TransformedEnv(base, Compose())
        for index, transform in enumerate(transforms):
            if OBSERVATION in transform.in_keys:
                numbers = self._inner.observation_spec[OBSERVATION].shape[-1]
                try:
                    _append(self._inner, transform)
                except Exception as error:
                    raise TransformError(
                        f"transforms.{index}={type(transform).__name__}: cannot be applied to observations of "
                        f"{numbers} numbers ({one_line(error)})"
                    ) from error
        specs = specs_of(self._inner)
        shape = specs["full_observation_spec"][OBSERVATION].shape
        specs["full_observation_spec"][OBSERVATION] = Unbounded(shape=shape, device=base.device)
        adopt_specs(self, specs)
        self._last = torch.zeros(shape, device=base.device)
        """Latest observations, which a restored environment returns again."""
        self._restored: dict[str, Any] | None = None

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        found = self._inner._step(tensordict)
        self._last = found[OBSERVATION]
        return found

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        found = self._inner._reset(tensordict, **kwargs)
        if self._restored is not None:
            for name, tensor in self._states().items():
                tensor.copy_(self._restored["states"][name])
            found[OBSERVATION], self._restored = self._restored[OBSERVATION].clone(), None
        of_reset = chosen(tensordict, self.batch_size[0]).unsqueeze(-1)
        self._last = torch.where(of_reset, found[OBSERVATION], self._last)
        return found

    def _states(self) -> dict[str, Tensor]:
        """The tensors of each transform, by its index and their name."""
        named = ((i, {**vars(t), **dict(t.named_buffers())}) for i, t in enumerate(self._inner.transform.transforms))
        return {f"{i}.{key}": value for i, found in named for key, value in found.items() if isinstance(value, Tensor)}

    def snapshot(self) -> dict[str, Any] | None:
        """Everything that the next steps depend on; None where the environment has no `snapshot`."""
        base = self._inner.base_env
        found = base.snapshot() if callable(getattr(type(base), "snapshot", None)) else None
        if found is None:
            return None
        states = {name: tensor.clone() for name, tensor in self._states().items()}
        return {"environment": found, "states": states, OBSERVATION: self._last.clone()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a snapshot: the next `reset` returns to it, in mid-episode, instead of starting anew."""
        self._inner.base_env.restore(state["environment"])
        self._restored = state

    def render(self, index: int = 0, height: int = 240, width: int = 320) -> np.ndarray:
        """See `Watched.render`; a TypeError where the environment cannot be drawn."""
        base = self._inner.base_env
        if not callable(getattr(type(base), "render", None)):
            raise TypeError(f"{type(base).__name__} has no method render(index, height, width)")
        picture: np.ndarray = base.render(index, height, width)
        return picture

    def _set_seed(self, seed: int | None) -> None:
        self._inner.base_env.set_seed(seed)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close the environment."""
        self.is_closed = True
        self._inner.close(raise_if_closed=raise_if_closed)


def _append(env: TransformedEnv, transform: Transform) -> None:
    """Appends a transform, and applies it once to zeros; raises a ValueError if it changes more than observations."""
    specs = specs_of(env)
    env.append_transform(transform.make([OBSERVATION]))
    for name, spec in specs_of(env).items():
        keys = {*spec.keys(True, True)} ^ {*specs[name].keys(True, True)}
        if keys or (name != "full_observation_spec" and spec != specs[name]):
            raise ValueError(f"it changes {', '.join(map(str, keys)) or name}; must change observations alone")
    zeros = specs["full_observation_spec"].zero()
    found = env.transform[-1]._reset(zeros.empty(), zeros)[OBSERVATION]
    shape = env.observation_spec[OBSERVATION].shape
    if found.shape != shape or len(shape) != 2 or found.dtype is not torch.float32:
        raise ValueError(f"it returns {found.dtype} of shape {list(found.shape)}; must be float32 of {list(shape)}")
