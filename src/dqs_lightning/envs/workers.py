"""A batched environment whose members are divided among processes."""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch import seed_everything
from tensordict import TensorDict, TensorDictBase
from torchrl.checkpoint import GlobalRNGState
from torchrl.data.utils import CloudpickleWrapper
from torchrl.envs import EnvBase

from dqs_lightning.envs.base import Environment, EnvironmentFailure, chosen
from dqs_lightning.envs.deadline import Patience
from dqs_lightning.envs.process import Child, ProcessFailure
from dqs_lightning.envs.restarts import START_LIMIT_S, Restarts
from dqs_lightning.envs.watched import Watched, adopt_specs, keys_of, specs_of

Arrays = list[np.ndarray]
"""One for each key: first those of the observation, in a step also the reward and the flags."""


class WorkerBatch(EnvBase):
    """num_envs members, divided equally among processes.

    Member i is seeded with seed + i, so that its episodes are those that it has in one process. A worker that raises,
    hangs, dies, or returns entries of another shape or dtype than the environment's specs say is replaced, with new
    seeds, as often as `restarts` allows. The episodes of its members then end as truncated in that step, at the last
    observation that is known and with reward 0, and new ones begin.

    Args:
        environment: what the workers make.
        num_envs: batch size.
        workers: processes; a divisor of num_envs.
        seed: of the first member.
        step_limit_s: seconds in which a step or a reset must end; construction and the first reset have START_LIMIT_S.
        restarts: counts the replaced workers.

    Raises:
        EnvironmentFailure: when a worker fails at construction, or later and `restarts` allows no more.
    """

    batch_locked = True

    def __init__(
        self, environment: Environment, num_envs: int, workers: int, seed: int, step_limit_s: float, restarts: Restarts
    ) -> None:
        super().__init__(device="cpu", batch_size=[num_envs])
        self._environment, self._seed, self._restarts = environment, seed, restarts
        self._each, self._step_limit_s = num_envs // workers, step_limit_s
        self._reset_limit_s = START_LIMIT_S  # of the next reset
        self._lost = np.zeros(num_envs, bool)  # whose episode has to end in the next step
        self._last: Arrays = []  # the last known observations
        self._workers: list[Child] = []
        self.is_closed = False
        try:
            for index in range(workers):
                self._workers.append(self._start(index))
            specs = self._ask(dict.fromkeys(range(workers), ("specs",)), START_LIMIT_S, self._refuse)[0]
            adopt_specs(self, {name: spec[0].expand(num_envs, *spec.shape[1:]) for name, spec in specs.items()})
        except BaseException:
            self.close()
            raise
        self._observed, self._returned = keys_of(self)

    def _start(self, index: int, further: int = 0) -> Child:
        seed = self._seed + index * self._each + further
        environment = self._environment
        return Child(_Members, CloudpickleWrapper(lambda: environment), self._each, seed)

    def _rows(self, index: int) -> slice:
        return slice(index * self._each, (index + 1) * self._each)

    def _who(self, index: int) -> str:
        first, count = index * self._each, len(self._workers)
        members = f"environments {first} to {first + self._each - 1}"
        return f"{self._environment.name}: worker {index + 1} of {count} ({members})"

    def _ask(
        self, requests: Mapping[int, Any], limit_s: float, on_failure: Callable[[int, str], None] | None = None
    ) -> dict[int, Any]:
        """Ask several workers at once; one that fails is replaced, and has no answer."""
        patience = Patience(limit_s)
        answers: dict[int, Any] = {}
        failures: dict[int, str] = {}
        for index, request in requests.items():
            try:
                self._workers[index].send(request, patience)
            except ProcessFailure as failure:
                failures[index] = str(failure)
        for index in (index for index in requests if index not in failures):
            try:
                answers[index] = self._workers[index].receive(patience)
            except ProcessFailure as failure:
                failures[index] = str(failure)
        for index, cause in sorted(failures.items()):
            (on_failure or self._replace)(index, cause)
        return answers

    def _refuse(self, index: int, cause: str) -> None:
        self.close()
        raise EnvironmentFailure(f"{self._who(index)} failed: {cause}")

    def _replace(self, index: int, cause: str) -> None:
        """Start another worker, with new episodes; those of the old one end in the next step."""
        while True:
            self._workers[index].kill()
            further = self._restarts.spend(self._who(index), cause, self._each)
            self._lost[self._rows(index)] = True
            try:
                self._workers[index] = self._start(index, further)
                self._workers[index].ask(("reset", None), START_LIMIT_S)
                return
            except ProcessFailure as failure:
                cause = str(failure)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict["action"].numpy()
        requests = {index: ("step", action[self._rows(index)]) for index in range(len(self._workers))}
        answers = self._ask(requests, self._step_limit_s)
        found = self._joined(answers, self._ended() if self._lost.any() else [])
        self._lost[:] = False
        self._last = found[: len(self._observed)]
        return self._tensordict(self._returned, found)

    def _joined(self, answers: dict[int, Arrays], instead: Arrays) -> Arrays:
        """The arrays of all members; those in `instead` for workers without an answer and for lost members."""
        rows = [answers.get(i) or [array[self._rows(i)] for array in instead] for i in range(len(self._workers))]
        joined = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
        if self._lost.any():
            for array, other in zip(joined, instead, strict=True):
                array[self._lost] = other[self._lost]
        return joined

    def _ended(self) -> Arrays:
        """Values of a step for members whose episodes are lost."""
        flags = {"done": True, "terminated": False, "truncated": True}
        rest = [self.output_spec["full_reward_spec"], self.output_spec["full_done_spec"]]
        zeros = [(key, spec[key].zero().numpy()) for spec in rest for key in spec.keys(True, True)]
        return [*self._last, *(array | flags[key] if key in flags else array for key, array in zeros)]

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        of_reset = chosen(tensordict, len(self._lost)).numpy()
        masks = {index: of_reset[self._rows(index)] for index in range(len(self._workers))}
        requests = {index: ("reset", None if mask.all() else mask) for index, mask in masks.items() if mask.any()}
        answers: dict[int, tuple[Arrays, int]] = {}
        while missing := requests.keys() - answers.keys():
            answers |= self._ask({index: requests[index] for index in missing}, self._reset_limit_s)
        if self._environment.untransformed.physics_errors is not None:
            self._environment.untransformed.count_diverged(sum(diverged for _, diverged in answers.values()))
        self._reset_limit_s = self._step_limit_s
        self._lost &= ~of_reset  # true for members of a worker that was replaced just now, which this is not for
        self._last = self._joined({index: found for index, (found, _) in answers.items()}, self._last)
        return self._tensordict(self._observed, self._last).update(self.full_done_spec.zero())

    def _tensordict(self, keys: list[Any], arrays: Arrays) -> TensorDictBase:
        tensors = {key: torch.from_numpy(array) for key, array in zip(keys, arrays, strict=True)}
        return TensorDict(tensors, batch_size=self.batch_size, device=self.device)

    def _set_seed(self, seed: int | None) -> None:
        seeds = {i: None if seed is None else seed + i * self._each for i in range(len(self._workers))}
        self._ask({index: ("seed", of_first) for index, of_first in seeds.items()}, START_LIMIT_S, self._refuse)

    def snapshot(self) -> dict[str, Any] | None:
        """Everything that the next steps depend on; None where the environment has no method `snapshot`."""
        requests = dict.fromkeys(range(len(self._workers)), ("snapshot",))
        answers = self._ask(requests, self._step_limit_s, self._without_snapshot)
        members = [answers.get(index) for index in requests]
        if any(state is None for state in members):
            return None
        return {"members": members, "lost": torch.from_numpy(self._lost.copy())}

    def _without_snapshot(self, index: int, cause: str) -> None:
        warnings.warn(f"{self._who(index)} gave no snapshot: {cause}", stacklevel=2)

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a snapshot of as many workers: the next `reset` returns to it, in mid-episode."""
        states = enumerate(state["members"])
        self._ask({index: ("restore", members) for index, members in states}, START_LIMIT_S, self._refuse)
        self._lost = state["lost"].numpy().copy()

    def close(self, *, raise_if_closed: bool = True) -> None:
        """End all workers."""
        self.is_closed = True
        for worker in self._workers:
            worker.release()
        for worker in self._workers:
            worker.close()


class _Members:
    """The environments of one worker, in its process."""

    def __init__(self, sent: Callable[[], Environment], num_envs: int, seed: int) -> None:
        environment = sent()
        seed_everything(seed, verbose=False)
        self.env = env = Watched(partial(environment.make, num_envs, seed), environment.name)
        self._source, self._diverged = environment.untransformed, 0
        self._observed, self._returned = keys_of(env)

    def __call__(self, request: tuple[Any, ...]) -> Any:
        call, *arguments = request
        return getattr(self, call)(*arguments)

    def specs(self) -> dict[str, Any]:
        return specs_of(self.env)

    def step(self, action: np.ndarray) -> Arrays:
        stepped = self.env.step(TensorDict({"action": torch.from_numpy(action)}, self.env.batch_size))["next"]
        return [stepped[key].numpy() for key in self._returned]

    def reset(self, chosen: np.ndarray | None) -> tuple[Arrays, int]:
        """Returns observations, and how many simulations have diverged since the last reset: each ends an episode."""
        if chosen is None:
            found = self.env.reset()
        else:
            mask = torch.from_numpy(chosen).reshape(-1, 1)
            found = self.env._reset(TensorDict({"_reset": mask}, self.env.batch_size))
        before, self._diverged = self._diverged, self._source.physics_errors or 0
        return [found[key].numpy() for key in self._observed], self._diverged - before

    def seed(self, seed: int | None) -> None:
        self.env.set_seed(seed)

    def snapshot(self) -> tuple[Any, ...] | None:
        found = self.env.snapshot()
        return None if found is None else (found, GlobalRNGState().state_dict())

    def restore(self, state: tuple[Any, ...]) -> None:
        self.env.restore(state[0])
        GlobalRNGState().load_state_dict(state[1])

    def close(self) -> None:
        self.env.close()
