"""Where a run's transitions come from: TorchRL collectors, in the run's own process or one block ahead of it."""

import copy
import ctypes
import pickle
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.collectors import Collector
from torchrl.data.utils import CloudpickleWrapper
from torchrl.envs import EnvBase

from dqs_lightning.agents import Agent
from dqs_lightning.envs import Environment, EnvironmentFailure
from dqs_lightning.envs.deadline import Patience
from dqs_lightning.envs.process import CONTEXT, Child, ProcessFailure, seed_process
from dqs_lightning.envs.restarts import START_LIMIT_S, Restarts
from dqs_lightning.envs.watched import Watched
from dqs_lightning.finite import MAX_MAGNITUDE, NonFiniteError, check_step, magnitude

NON_FINITE = f"{NonFiniteError.__name__}: "


class Behaviour(nn.Module):
    """Computes a collector's actions [..., d] for observations [..., o], and refuses what is not finite.

    An environment may fail at such an action, and an agent at such an observation; the error then names the cause.
    On a GPU it waits for the actions, as the environments would do next.

    Args:
        agent: acts.
        frames: gives the environment frames before the present block, for the message; None: they are not known.

    Raises:
        NonFiniteError: naming the environment, for an action that is not finite, or the observation that led to it.
    """

    def __init__(self, agent: Agent, frames: Callable[[], int] | None = None) -> None:
        super().__init__()
        self.agent, self.frames = agent, frames

    def forward(self, observation: Tensor) -> Tensor:
        try:
            action: Tensor = self.agent(observation)
        except Exception:
            self._check("observation", observation)
            raise
        if not magnitude(action) <= MAX_MAGNITUDE:
            self._check("observation", observation)
            self._check("action", action)
        return action

    def _check(self, source: str, values: Tensor) -> None:
        check_step(source, values, f"after frame {self.frames():,}: " if self.frames else "")


def behaviour(agent: Agent, frames: Callable[[], int] | None = None) -> TensorDictModule:
    """The agent as a collector's policy; `frames` as in `Behaviour`."""
    return TensorDictModule(Behaviour(agent, frames), in_keys=["observation"], out_keys=["action"])


def collector_of(
    env: EnvBase, agent: Agent, steps: int, random_steps: int, frames: Callable[[], int] | None = None
) -> Collector:
    """Collects blocks of `steps` steps of all environments together, the first `random_steps` of uniform actions.

    It closes the environments, also when it cannot be constructed. `frames` as in `Behaviour`.
    """
    try:
        return Collector(
            env,
            behaviour(agent, frames),
            frames_per_batch=steps,
            total_frames=-1,
            init_random_frames=random_steps or None,
            policy_device=agent.device,
            env_device="cpu",
            storing_device="cpu",
            track_traj_ids=False,
            auto_register_policy_transforms=False,
        )
    except BaseException:
        env.close(raise_if_closed=False)
        raise


class Ahead:
    """Collects the next block in a process of its own, on the CPU, while the updates of this one are made.

    Each block is requested when the one before arrives, with the weights of that moment: its policy lacks the updates
    of one block, never more, however fast either side is. The process has a random state of its own, so that a run
    repeats; the state of its environments is not known here. A process that raises, hangs or dies is replaced as often
    as `restarts` allows: the block is collected anew, with new episodes and new seeds.

    Args:
        environment: what the process makes.
        num_envs: environments, stepped together.
        agent: of which a copy acts.
        steps: of all environments together, in a block.
        random_steps: at first, of uniform actions.
        seed: of the process and of its environments.
        updates: gradient updates that have been made when the next block is requested.
        step_limit_s: seconds in which each step must end.
        restarts: counts the replaced processes.
        on_loss: called when the process was replaced: the episodes of the blocks so far do not go on.

    Raises:
        EnvironmentFailure: when the process fails at construction, or later and `restarts` allows no more.
    """

    age: int | None = None
    """Updates that the policy of the latest block lacked when the block arrived."""

    def __init__(
        self,
        environment: Environment,
        num_envs: int,
        agent: Agent,
        steps: int,
        random_steps: int,
        seed: int,
        updates: Callable[[], int],
        step_limit_s: float,
        restarts: Restarts,
        on_loss: Callable[[], None],
    ) -> None:
        self.environment, self.num_envs, self.agent = environment, num_envs, agent
        self.steps, self.random_steps, self.seed = steps, random_steps, seed
        self.updates, self.step_limit_s = updates, step_limit_s
        self.restarts, self.on_loss = restarts, on_loss
        self._policy = pickle.dumps(copy.deepcopy(agent).cpu())
        self._weights = torch.cat(_flat(agent)).share_memory_()
        self._beats = CONTEXT.RawValue(ctypes.c_ulong)  # steps that the process has begun
        self._requested = 0  # updates at the latest request
        self._blocks = 0
        try:
            self._process = self._start(seed)
        except ProcessFailure as failure:
            raise EnvironmentFailure(f"{self._who()} failed: {failure}") from failure

    def _who(self) -> str:
        return f"{self.environment.name}: the process that collects"

    def _start(self, seed: int) -> Child:
        make = CloudpickleWrapper(partial(self.environment.make, self.num_envs, seed))
        random_steps = max(0, self.random_steps - self._blocks * self.steps)
        ours = (self._policy, self._weights, self._beats)
        process = Child(_Blocks, make, self.environment.name, seed, self.steps, random_steps, *ours)
        try:
            process.ask("ready", START_LIMIT_S)
        except BaseException:
            process.kill()
            raise
        return process

    def __iter__(self) -> Iterator[TensorDictBase]:
        self._request()
        while True:
            block = self._receive()
            self._blocks += 1
            self.age = self.updates() - self._requested
            self._request()
            yield block

    def _request(self) -> None:
        """Let the process collect a block with the present weights."""
        torch.cat(_flat(self.agent), out=self._weights)
        self._requested = self.updates()
        with suppress(ProcessFailure):  # found again when the block is received
            self._process.send("block", Patience(self.step_limit_s))

    def _receive(self) -> TensorDictBase:
        while True:
            try:
                block: dict[str, Any] = self._process.receive(Patience(self.step_limit_s, lambda: self._beats.value))
            except ProcessFailure as failure:
                self._replace(str(failure))
            else:
                arrays = {key: torch.from_numpy(array) for key, array in block.items()}
                return TensorDict(arrays, [self.num_envs, self.steps // self.num_envs]).unflatten_keys(".")

    def _replace(self, cause: str) -> None:
        """Start another process, which collects the same block."""
        if cause.startswith(NON_FINITE):  # the data's fault, not the process's
            raise NonFiniteError(cause.removeprefix(NON_FINITE))
        while True:
            self._process.kill()
            further = self.restarts.spend(self._who(), cause, self.num_envs)
            self.on_loss()
            try:
                self._process = self._start(self.seed + further)
                self._process.send("block", Patience(self.step_limit_s))
                return
            except ProcessFailure as failure:
                cause = str(failure)

    def shutdown(self) -> None:
        """End the process."""
        self._process.close()


class _Blocks:
    """The collector, in its process."""

    def __init__(
        self,
        make: Callable[[], EnvBase],
        name: str,
        seed: int,
        steps: int,
        random_steps: int,
        policy: bytes,
        weights: Tensor,
        beats: Any,
    ) -> None:
        seed_process(seed)
        self.agent: Agent = pickle.loads(policy)
        self.weights, self.beats = weights, beats
        self.collector = collector_of(Watched(make, name, step=self), self.agent, steps, random_steps)
        self.blocks = iter(self.collector)

    def __enter__(self) -> None:
        self.beats.value += 1

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, request: str) -> dict[str, Any] | None:
        if request == "ready":
            return None
        numbers = [*self.agent.parameters(), *self.agent.buffers()]
        for number, value in zip(numbers, self.weights.split([n.numel() for n in numbers]), strict=True):
            number.data.copy_(value.view_as(number))
        block = next(self.blocks).flatten_keys(".")
        return {key: value.numpy() for key, value in block.items()}

    def close(self) -> None:
        self.collector.shutdown()


def _flat(agent: Agent) -> list[Tensor]:
    """Parameters and buffers as vectors on the CPU; double precision holds all of them exactly."""
    return [number.detach().cpu().double().flatten() for number in (*agent.parameters(), *agent.buffers())]
