"""Several environments as one, whose observation says which of them a member plays."""

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from dqs_lightning.envs.base import Environment, chosen
from dqs_lightning.envs.interface import Interface
from dqs_lightning.envs.watched import Watched

FLAGS = ("done", "terminated", "truncated")


class MultiTask(Environment):
    """Several tasks for one agent: each member of a batch plays one of them, and its observation says which.

    Observations are those of the task, padded with zeros to the widest, and then the one-hot of the task. Actions have
    the dimension of the widest; a task with fewer ignores the last components, and agents exclude them
    (`action_dims`). The n members are divided into consecutive groups, one for each task in their order, as equal as
    possible; for training `data.num_envs` must be a multiple of the number of tasks, so that replay and updates are
    balanced.

    Args:
        environments: the tasks, two or more, with the same `action_repeat`.
        label: name of the whole for run directories; None: the tasks' names, joined by +.

    Raises:
        ValueError: for fewer than two tasks, or different values of `action_repeat`.
    """

    def __init__(self, environments: list[Environment], label: str | None = None) -> None:
        if len(environments) < 2:
            raise ValueError(f"environments={[e.name for e in environments]}: must be two or more")
        repeats = [environment.action_repeat for environment in environments]
        if len(set(repeats)) > 1:
            raise ValueError(f"environments: their action_repeat must be the same, not {', '.join(map(str, repeats))}")
        if label is not None and (not label or "/" in label):
            raise ValueError(f"label={label}: must be a name without slashes")
        super().__init__(repeats[0])
        self.environments, self.label = environments, label
        self._diverged_elsewhere = 0
        self._original: MultiTask | None = None

    @property
    def untransformed(self) -> "MultiTask":
        return self._original or self

    @property
    def name(self) -> str:
        return self.label or "+".join(self.tasks)

    @property
    def tasks(self) -> list[str]:
        names = [environment.name for environment in self.environments]
        numbers = [names[: index + 1].count(name) for index, name in enumerate(names)]
        return [f"{name}-{number}" if number > 1 else name for name, number in zip(names, numbers, strict=True)]

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """Dimensions of each task's observation and action; each environment is made once to learn them."""
        found = []
        for environment in self.environments:
            with closing(Watched(partial(environment.make, 1, 0), environment.name)) as env:
                found.append((env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]))
        return found

    @property
    def action_dims(self) -> list[int]:
        return [action for _, action in self.sizes]

    @property
    def physics_errors(self) -> int | None:
        counts = [environment.untransformed.physics_errors for environment in self.environments]
        known = [count for count in counts if count is not None]
        return sum(known) + self._diverged_elsewhere if known else None

    @physics_errors.setter
    def physics_errors(self, total: int | None) -> None:
        self._diverged_elsewhere += (total or 0) - (self.physics_errors or 0)

    def each(self, change: Callable[[Environment], Environment]) -> "MultiTask":
        """Returns the same tasks with their environments changed, such as by transforms of the observations."""
        other = copy.copy(self)
        vars(other).pop("sizes", None)
        other.environments = [change(environment) for environment in self.environments]
        other._original = self.untransformed
        return other

    def make(self, num_envs: int, seed: int) -> "MultiTaskBatch":
        sizes = self.sizes
        groups = [len(group) for group in np.array_split(range(num_envs), len(self.environments))]
        with ExitStack() as opened:
            parts: list[Watched] = []
            for environment, count in zip(self.environments, groups, strict=True):
                if count:
                    make = partial(environment.make, count, seed + sum(groups[: len(parts)]))
                    parts.append(opened.enter_context(closing(Watched(make, environment.name))))
            batch = MultiTaskBatch(parts, sizes)
            opened.pop_all()
        return batch

    def interface(self) -> Interface:
        raise ValueError(f"{self.name}: each task has its own; they are those of its environments")


class MultiTaskBatch(EnvBase):
    """The members of each task, one group after the other.

    Args:
        parts: the batches of the first tasks, in their order; further tasks have no member.
        sizes: dimensions of the observation and the action of all tasks.
    """

    batch_locked = True

    def __init__(self, parts: Sequence[Watched], sizes: Sequence[tuple[int, int]]) -> None:
        counts = [part.batch_size[0] for part in parts]
        devices = {part.device for part in parts}
        if len(devices) > 1:
            raise ValueError(f"environments: must all be on one device, not {', '.join(sorted(map(str, devices)))}")
        num_envs, (device,) = sum(counts), devices
        super().__init__(device=device, batch_size=[num_envs])
        ends = np.cumsum([0, *counts]).tolist()
        self._parts = parts
        self._rows = [slice(start, stop) for start, stop in pairwise(ends)]
        self._sizes = [(part.observation_spec["observation"].shape[-1], part.action_spec.shape[-1]) for part in parts]
        width, action_dim = (max(column) for column in zip(*sizes, strict=True))
        self._observation = torch.zeros(num_envs, width + len(sizes), device=device)
        for task, rows in enumerate(self._rows):
            self._observation[rows, width + task] = 1
        flag = Categorical(2, shape=(num_envs, 1), dtype=torch.bool, device=device)
        observation = Unbounded(shape=self._observation.shape, device=device)
        self.observation_spec = Composite(observation=observation, shape=(num_envs,), device=device)
        self.action_spec = Bounded(-1, 1, shape=(num_envs, action_dim), dtype=torch.float32, device=device)
        self.reward_spec = Unbounded(shape=(num_envs, 1), device=device)
        flags = {name: flag.clone() for name in FLAGS}
        self.full_done_spec = Composite(**flags, shape=(num_envs,), device=device)
        self.is_closed = False

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict["action"]
        found = []
        for part, rows, (width, action_dim) in zip(self._parts, self._rows, self._sizes, strict=True):
            stepped = part._step(TensorDict({"action": action[rows, :action_dim]}, part.batch_size))
            self._observation[rows, :width] = stepped["observation"]
            found.append(stepped)
        entries = {key: torch.cat([stepped[key] for stepped in found]) for key in ("reward", *FLAGS)}
        return self._result(entries)

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        mask = chosen(tensordict, self.batch_size[0])
        for part, rows, (width, _) in zip(self._parts, self._rows, self._sizes, strict=True):
            if (of_reset := mask[rows]).any():
                request = TensorDict({"_reset": of_reset.unsqueeze(-1)}, part.batch_size)
                observation = part._reset(None if of_reset.all() else request)["observation"]
                self._observation[rows, :width][of_reset] = observation[of_reset]
        running = torch.zeros(*self.batch_size, 1, dtype=torch.bool, device=self.device)
        return self._result({name: running.clone() for name in FLAGS})

    def _result(self, entries: dict[str, Tensor]) -> TensorDictBase:
        return TensorDict({"observation": self._observation.clone(), **entries}, self.batch_size, device=self.device)

    def _set_seed(self, seed: int | None) -> None:
        for part, rows in zip(self._parts, self._rows, strict=True):
            part.set_seed(None if seed is None else seed + rows.start)

    def snapshot(self) -> dict[str, Any] | None:
        """Everything that the next steps depend on; None where one of the environments has no `snapshot`."""
        states = [part.snapshot() for part in self._parts]
        if any(state is None for state in states):
            return None
        return {"parts": states, "observation": self._observation.clone()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a snapshot: the next `reset` returns to it, in mid-episode, instead of starting anew."""
        self._observation = state["observation"].clone()
        for part, saved in zip(self._parts, state["parts"], strict=True):
            part.restore(saved)

    def render(self, index: int = 0, height: int = 240, width: int = 320) -> np.ndarray:
        """RGB picture [height, width, 3], uint8, of one member; a TypeError where its task cannot be drawn."""
        part, rows = next((p, r) for p, r in zip(self._parts, self._rows, strict=True) if r.start <= index < r.stop)
        return part.render(index - rows.start, height, width)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Closes the environments of all tasks."""
        self.is_closed = True
        for part in self._parts:
            part.close(raise_if_closed=raise_if_closed)
