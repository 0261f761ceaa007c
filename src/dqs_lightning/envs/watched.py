"""Wraps an environment and turns all of its failures into `EnvironmentFailure`."""

import traceback
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities.seed import isolate_rng
from tensordict import NestedKey, TensorDictBase
from torchrl.data import Composite
from torchrl.envs import EnvBase, TransformedEnv

from dqs_lightning.envs.base import Environment, EnvironmentFailure, one_line
from dqs_lightning.envs.deadline import Deadline, Overdue
from dqs_lightning.envs.restarts import START_LIMIT_S

NO_LIMIT: AbstractContextManager[None] = nullcontext()


def describe(error: BaseException) -> str:
    """`one_line`, with the place of the last call in the traceback."""
    text, frames = one_line(error)[:500], traceback.extract_tb(error.__traceback__)
    return f"{text} ({Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name})" if frames else text


class Watched(EnvBase):
    """Wraps another environment, and raises `EnvironmentFailure` when it fails.

    Failures are an exception, a call that exceeds its time limit, and entries that are missing or have another shape or
    dtype than in the environment's specs. Construction uses an isolated random state, so that other random numbers do
    not depend on the process in which the environment is. An exception at construction is not changed.

    Args:
        make: makes the environment.
        name: of the environment, for messages.
        step: entered around each step and reset, such as a `Deadline`.
        start: entered around construction and the first reset instead.
    """

    batch_locked = True

    def __init__(
        self,
        make: Callable[[], EnvBase],
        name: str,
        step: AbstractContextManager[None] = NO_LIMIT,
        start: AbstractContextManager[None] = NO_LIMIT,
    ) -> None:
        try:
            with start, isolate_rng():
                inner = make()
        except Overdue as error:
            raise EnvironmentFailure(f"{name}: construction did not end {error}") from error
        super().__init__(device=inner.device, batch_size=inner.batch_size)
        adopt_specs(self, specs_of(inner))
        self.label, self.inner = name, inner
        self._limits = {"step": step, "reset": start}
        self._later = step
        self._expected = {call: _expected(inner, call) for call in ("step", "reset")}
        self._nested = any(isinstance(key, tuple) for key, *_ in self._expected["step"])
        self._inner_step, self._inner_reset = inner._step, inner._reset
        self.is_closed = False

    def _guarded(self, what: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            with self._limits.get(what, self._later):
                return call(*args, **kwargs)
        except EnvironmentFailure:
            raise
        except Overdue as error:
            raise EnvironmentFailure(f"{self.label}: {what} did not end {error}") from error
        except Exception as error:
            raise EnvironmentFailure(f"{self.label}: {what} raised {describe(error)}") from error

    def _checked(self, what: str, found: Any) -> TensorDictBase:
        if not isinstance(found, TensorDictBase):
            raise EnvironmentFailure(f"{self.label}: {what} returned a {type(found).__name__}, not a TensorDict")
        entries = dict(found.items(self._nested, self._nested))  # several times faster than `get`
        for key, shape, dtype, needed in self._expected[what]:
            value = entries.get(key)
            if value is None:
                if needed:
                    raise EnvironmentFailure(f"{self.label}: {what} returned no {key}")
            elif value.dtype is not dtype or value.shape != shape:
                raise EnvironmentFailure(
                    f"{self.label}: {what} returned {key} of shape {list(value.shape)} and {value.dtype}, "
                    f"not {list(shape)} and {dtype}"
                )
        return found

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        return self._checked("step", self._guarded("step", self._inner_step, tensordict))

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        found = self._checked("reset", self._guarded("reset", self._inner_reset, tensordict, **kwargs))
        self._limits["reset"] = self._later
        return found

    def _set_seed(self, seed: int | None) -> None:
        self.inner.set_seed(seed)

    def snapshot(self) -> dict[str, Any] | None:
        """Everything that the next steps depend on; None where the environment has no `snapshot`, or it fails."""
        source = _base_of(self.inner)
        if not callable(getattr(type(source), "snapshot", None)):  # of the class: TorchRL's may answer for any name
            return None
        try:
            found: dict[str, Any] = self._guarded("snapshot", source.snapshot)
        except EnvironmentFailure as failure:  # the rest of a run is worth saving
            warnings.warn(str(failure), stacklevel=2)
            return None
        return found

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a snapshot: the next `reset` returns to it, in mid-episode, instead of starting anew."""
        self._guarded("restore", _base_of(self.inner).restore, state)

    def render(self, index: int = 0, height: int = 240, width: int = 320) -> np.ndarray:
        """RGB picture [height, width, 3], uint8, of one member, where the environment has a method `render`."""
        picture: np.ndarray = self._guarded("render", self.inner.render, index, height, width)
        return picture

    def __del__(self) -> None:
        pass  # the environment inside has its own

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close the environment; a failure to do so is a warning."""
        if self.is_closed:
            return
        self.is_closed = True
        try:
            self._guarded("close", self.inner.close, raise_if_closed=False)
        except EnvironmentFailure as failure:
            warnings.warn(str(failure), stacklevel=2)


def watched(makes: Environment, name: str, num_envs: int, seed: int, step_timeout_s: float) -> Watched:
    """Returns environments whose failures raise `EnvironmentFailure`, also that to end a step within a time."""
    step = Deadline(f"{name}: a step", step_timeout_s)
    make = partial(makes.make, num_envs, seed)
    return Watched(make, name, step, Deadline(f"{name}: construction", START_LIMIT_S))


def _base_of(env: EnvBase) -> EnvBase:
    """The environment under all transforms."""
    while isinstance(env, TransformedEnv):
        env = env.base_env
    return env


def specs_of(env: EnvBase) -> dict[str, Composite]:
    """An environment's specs by their names in `EnvBase`."""
    names = ("full_observation_spec", "full_action_spec", "full_reward_spec", "full_done_spec")
    return {name: getattr(env, name).clone() for name in names}


def adopt_specs(env: EnvBase, specs: dict[str, Composite]) -> None:
    """Give an environment the specs of another."""
    for name, spec in specs.items():
        setattr(env, name, spec)


def keys_of(env: EnvBase) -> tuple[list[NestedKey], list[NestedKey]]:
    """Keys that a reset and a step write: those of the observation, in a step then the reward and the flags."""
    specs = (env.full_observation_spec, env.full_reward_spec, env.full_done_spec)
    observed, reward, flags = (list(spec.keys(True, True)) for spec in specs)
    return observed, [*observed, *reward, *flags]


def _expected(env: EnvBase, call: str) -> list[tuple[NestedKey, Any, Any, bool]]:
    """Key, shape, dtype, and whether it must be there; TorchRL completes flags that are missing."""
    specs = [(env.full_observation_spec, True), (env.full_done_spec, False)]
    if call == "step":
        specs.append((env.full_reward_spec, True))
    return [(key, spec[key].shape, spec[key].dtype, needed) for spec, needed in specs for key in spec.keys(True, True)]
