"""Collects transitions in processes of a Ray cluster, its actors, through TorchRL's Ray collector."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tensordict import TensorDictBase

from dqs_lightning.agents import Agent
from dqs_lightning.checkpoint.restore import saved_arguments
from dqs_lightning.collection.actor import ActorCollector, behaviour_of
from dqs_lightning.collection.cluster import connect
from dqs_lightning.collection.source import Clock
from dqs_lightning.envs import EnvironmentFailure
from dqs_lightning.envs.restarts import SEED_STRIDE, START_LIMIT_S
from dqs_lightning.finite import NonFiniteError
from dqs_lightning.registry import describe
from dqs_lightning.stop_signal import STOP, StopInterrupt

if TYPE_CHECKING:
    from dqs_lightning.collection.data import OnlineData

ATTEMPTS = 3
"""Actors in one place that may be lost in a row before one of them has collected a block."""
FREE_S = 10.0
"""Seconds in which Ray's count of free CPUs has to be up to date."""
LOOK_EVERY_S = 1.0
"""Seconds between two looks at actors that are being started."""


@dataclass
class Place:
    """One of the actors, and the one that replaces it when it is lost.

    Attributes:
        actor: handle of the present one.
        ready: resolves when it has been started; None afterwards.
        block: that it is collecting; None: it is idle.
        since: updates of the agent whose weights collect the block.
        lost: actors that were lost in a row without a block.
    """

    actor: Any
    ready: Any
    block: Any = None
    since: int = 0
    lost: int = 0


def candidates(ages: list[int], updates: int, limit: int) -> int:
    """Returns how many of the oldest blocks may be taken next, so that none becomes older than a limit.

    Args:
        ages: of the blocks that are being collected, from the oldest on, in updates.
        updates: that follow when a block has been taken.
        limit: largest age when a block is taken; at least `updates` times the number of blocks.
    """
    for before, age in enumerate(ages):
        if age + (before + 1) * updates > limit:
            return before + 1
    return len(ages)


class RayBlocks:
    """Blocks from actors, in the order in which they arrive, as far as the age of their weights allows.

    Each actor collects its next block as soon as the previous one has been taken, with the weights of that moment. The
    age of a block is the number of updates between its weights and its arrival in the replay buffer, which is at most
    `data.max_policy_age`: a block that would become older is waited for. An actor that is lost, with its process or its
    machine, is replaced with new seeds. The block that it was collecting is not counted, and is collected by another.
    TorchRL's own iteration over these collectors ends with the first one that is lost, and does not bound the age.

    Args:
        data: the run's numbers.
        agent: the behaviour policy.
        clock: counts the blocks that were taken.
        seed: of the first environment of the first actor.
        end_episodes: called with the index of an actor that was lost.
    """

    def __init__(
        self, data: "OnlineData", agent: Agent, clock: Clock, seed: int, end_episodes: Callable[[int], None]
    ) -> None:
        from torchrl.collectors.distributed import RayCollector

        self.data, self.agent, self.clock, self.seed = data, agent, clock, seed
        self.end_episodes, self.frames = end_episodes, clock.frames
        try:
            self.ray = connect(data.ray_address, data.actors + 1)
        except ConnectionError as error:
            raise EnvironmentFailure(f"data.ray_address={error}") from error
        self._check_cpus()
        self.options: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0}
        made = [self._arguments(index, 0) for index in range(data.actors)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the weights are not sent by TorchRL
            try:
                self.collector = RayCollector(
                    [make for make, _ in made],
                    policy_factory=[arguments.pop("policy_factory") for _, arguments in made],
                    collector_kwargs=[arguments for _, arguments in made],
                    collector_class=ActorCollector,
                    frames_per_batch=clock.steps_per_block,
                    remote_configs=self.options,
                    num_collectors=data.actors,
                    weight_sync_schemes={},
                )
            except BaseException as error:
                self.ray.shutdown()
                raise self._explained(0, error) from error
        self.arguments = {k: v for k, v in made[0][1].items() if k not in ("policy_factory", "worker_idx")}
        self.places = [Place(actor, None) for actor in self.collector.remote_collectors]
        self._sent: tuple[int, Any] = (-1, None)

    def _check_cpus(self) -> None:
        until = time.monotonic() + FREE_S
        while (free := int(self.ray.available_resources().get("CPU", 0))) < self.data.actors:
            if time.monotonic() < until:
                time.sleep(LOOK_EVERY_S)
                continue
            self.ray.shutdown()
            raise EnvironmentFailure(
                f"data.actors={self.data.actors}: each needs a CPU, and the cluster has {free} that are free"
            )

    def _arguments(self, index: int, attempt: int) -> tuple[Callable[[], Any], dict[str, Any]]:
        """Returns what makes the environments of an actor, and the arguments of its collector."""
        seed = (self.seed + index * self.data.num_envs + attempt * SEED_STRIDE) % 2**31
        kind, key = type(self.agent), self.agent.CHECKPOINT_HYPER_PARAMS_KEY
        given = saved_arguments({key: describe(dict(self.agent.hparams))}, key, kind)
        policy = partial(behaviour_of, kind, given, seed)
        arguments = {"policy_factory": policy, "track_traj_ids": False, "auto_register_policy_transforms": False}
        return self.data.environment_maker(self.data.num_envs, seed), arguments

    @property
    def updates(self) -> int:
        """Updates that the agent has made."""
        return self.agent.global_step

    def next(self) -> tuple[TensorDictBase, int]:
        """Returns a block [E, T] and the index of its actor.

        Raises:
            EnvironmentFailure: when actors fail again and again, or none can be started.
            StopInterrupt: on a stop signal while no actor collects.
            NonFiniteError: when an actor has found a non-finite observation or action.
        """
        idle_since = time.monotonic()
        while True:
            self._look_at_starting()
            self._start_blocks()
            busy = sorted((place for place in self.places if place.block is not None), key=lambda place: place.since)
            if not busy:
                if STOP.received is not None:
                    raise StopInterrupt
                if time.monotonic() - idle_since > START_LIMIT_S:
                    raise EnvironmentFailure(f"no actor could be started within {START_LIMIT_S:g} s")
                time.sleep(LOOK_EVERY_S / 10)
                continue
            ages = [self.updates - place.since for place in busy]
            most = candidates(ages, self.data.updates_per_block, self.data.max_policy_age)
            waiting = [place.block for place in busy[:most]]
            if not (ready := self.ray.wait(waiting, timeout=LOOK_EVERY_S)[0]):
                continue
            place = next(place for place in busy if place.block == ready[0])
            if (block := self._taken(place)) is not None:
                self.frames += self.clock.frames_per_block
                self._start_blocks()  # before the updates, so that actors collect during them
                return block, self.places.index(place)

    def _taken(self, place: Place) -> TensorDictBase | None:
        """Returns the block of an actor, which is idle then; None where the actor was lost, and is replaced."""
        future, place.block = place.block, None
        try:
            block: TensorDictBase = self.ray.get(future)
        except self.ray.exceptions.RayError as error:
            self._replace(place, error)
            return None
        place.lost = 0
        self.data.policy_age = max(self.data.policy_age, self.updates - place.since)
        return block

    def _start_blocks(self) -> None:
        """Lets idle actors collect, but no more blocks than the run still needs."""
        per_block, total = self.clock.frames_per_block, self.clock.total_frames
        for place in self.places:
            started = self.frames + per_block * sum(other.block is not None for other in self.places)
            if place.block is None and place.ready is None and started < total:
                uniform = started < self.clock.random_frames
                place.since = self.updates
                place.block = place.actor.collect.remote(self._weights(), uniform, self.clock.frames)

    def _weights(self) -> Any:
        """Returns a reference to the present weights, which are sent to each machine once."""
        if self._sent[0] != self.updates:
            self._sent = self.updates, self.ray.put(self.agent.acting_state())
        return self._sent[1]

    def _look_at_starting(self) -> None:
        """Notices actors that have been started, and those that could not be."""
        for place in self.places:
            if place.ready is not None and self.ray.wait([place.ready], timeout=0)[0]:
                ready, place.ready = place.ready, None
                try:
                    self.ray.get(ready)
                except self.ray.exceptions.RayError as error:
                    self._replace(place, error)

    def _replace(self, place: Place, error: Exception) -> None:
        """Starts another actor in a place; its environments begin new episodes."""
        index, failure = self.places.index(place), self._explained(self.places.index(place), error)
        if isinstance(failure, NonFiniteError):
            raise failure
        self.data.lost_actors += 1
        place.lost += 1
        if isinstance(failure, EnvironmentFailure) and not isinstance(error, self.ray.exceptions.RayActorError):
            self.data.restarts.spend(f"actor {index}", str(failure), self.data.num_envs)
        elif place.lost > ATTEMPTS:
            raise failure
        else:
            warnings.warn(f"{failure}; replaced, and its unfinished block is collected again", stacklevel=2)
        self.end_episodes(index)
        self.ray.kill(place.actor)
        make, arguments = self._arguments(index, self.data.lost_actors)
        added = {**self.arguments, **arguments}
        self.collector.add_collectors([make], 1, None, [added], [self.options])
        place.actor = self.collector.remote_collectors.pop()
        self.collector.remote_collectors[index] = place.actor
        place.ready = place.actor.__ray_ready__.remote()

    def _explained(self, index: int, error: BaseException) -> BaseException:
        """Returns the error of an actor as one of this process."""
        cause = getattr(error, "cause", None)
        if isinstance(cause, EnvironmentFailure | NonFiniteError):
            return cause
        if not isinstance(error, self.ray.exceptions.RayError):
            return error
        text = str(cause or error).strip().splitlines()
        return EnvironmentFailure(f"actor {index} was lost: {text[0] if text else type(error).__name__}")

    def shutdown(self) -> None:
        """Ends all actors, and Ray where it was started here."""
        self.collector.shutdown()
        self.ray.shutdown()
