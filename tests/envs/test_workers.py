"""Tests of worker processes: members equal those of one process, and a worker that fails is replaced."""

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from faulty import RETURNED, Faulty, ended
from helpers import cartpole
from tensordict import TensorDictBase
from torch import Tensor

from dqs_lightning.envs import Environment, EnvironmentFailure, Gym, Maze
from dqs_lightning.envs.maze import MazeBatch
from dqs_lightning.envs.restarts import RESTARTS, Restarts
from dqs_lightning.envs.workers import WorkerBatch

CAUSES = {
    "raising": r"faulty: step raised FloatingPointError: the physics diverged \(faulty.py:\d+ in fail\)",
    "sleeping": r"no answer within 1 s: faulty: step did not end in time \(faulty.py:\d+ in fail\)",
    "busy": r"no answer within 1 s: faulty: step did not end in time \(faulty.py:\d+ in fail\)",
    "stopped": "no answer within 1 s; it has been stopped by a signal",
    "killed": "it was killed by SIGKILL",
    "exiting": "it ended with exit code 7",
    **{fault: f"faulty: {cause}" for fault, cause in RETURNED.items()},
}


@contextmanager
def batch_of(environment: Environment, seed: int = 0, restarts: Restarts | None = None) -> Iterator[WorkerBatch]:
    """Yields four members in two workers."""
    env = WorkerBatch(environment, 4, 2, seed, 1.0, restarts or Restarts())
    pids = [worker.pid for worker in env._workers]
    try:
        yield env
    finally:
        pids += [worker.pid for worker in env._workers]
        env.close()
    assert all(ended(pid) for pid in pids)


def steps(env: Any, number: int) -> TensorDictBase:
    torch.manual_seed(0)
    rollout: TensorDictBase = env.rollout(number, break_when_any_done=False)
    return rollout


def equal(a: TensorDictBase, b: TensorDictBase) -> bool:
    keys = set(a.keys(True, True))
    return keys == set(b.keys(True, True)) and all(torch.equal(a[key], b[key]) for key in keys)


@pytest.mark.parametrize("environment", [cartpole(action_repeat=40), Maze(horizon=5), Gym("Pendulum-v1")])
def test_members_are_bitwise_equal_to_those_of_one_process(environment: Environment) -> None:
    with batch_of(environment, seed=3) as env:
        divided = steps(env, 210)
        assert divided["next", "done"].any()
        assert equal(divided, steps(environment.make(4, 3), 210))


@pytest.mark.parametrize("fault", list(CAUSES))
def test_a_worker_that_fails_is_replaced_and_its_episodes_are_truncated(fault: str) -> None:
    restarts, begun = Restarts(), time.monotonic()
    with batch_of(Faulty(fault, seeds=[2]), restarts=restarts) as env:
        first = env._workers[1].pid
        with pytest.warns(UserWarning) as warned:
            found = steps(env, 9)
        assert ended(first)
    (text,) = [str(warning.message) for warning in warned]
    who, what = r"faulty: worker 2 of 2 \(environments 2 to 3\)", r"replaced \(1 of at most 3\), 2 episodes are lost"
    assert re.fullmatch(f"{who} failed: {CAUSES[fault]}; {what}", text), text
    assert (restarts.used, restarts.lost_episodes) == (1, 2)
    assert time.monotonic() - begun < 10
    following = found["next"]
    # Members of the other worker are not affected.
    assert equal(found[:2], steps(Faulty("", seeds=[]).make(4, 0), 9)[:2])
    # The third step of the failed worker's members ends at the observation of their second step.
    assert torch.equal(following["observation"][2:, 2], following["observation"][2:, 1])
    assert following["truncated"][2:, 2].all() and following["done"][2:, 2].all()
    assert not following["terminated"][2:].any() and not following["reward"][2:, 2].any()
    # Then a new episode of full length begins at another position.
    assert (found["observation"][2:, 3].abs() <= 0.05).all()
    assert following["done"][2:].squeeze(-1).nonzero()[:, 1].tolist() == [2, 8, 2, 8]


def test_after_a_failure_in_a_reset_the_next_step_ends_the_workers_other_episodes() -> None:
    class Uneven(Faulty):
        """A maze in which the third member has shorter episodes."""

        def make(self, num_envs: int, seed: int) -> MazeBatch:
            batch = super().make(num_envs, seed)
            if seed == 2:
                batch._steps[0] = 2
                begin = batch._reset

                def reset(tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
                    found = begin(tensordict, **kwargs)
                    batch._steps[0] = 2
                    return found

                batch._reset = reset
            return batch

    restarts = Restarts()
    uneven = Uneven("raising", at=2, seeds=[2], call="reset")
    with pytest.warns(UserWarning, match="reset raised Floating"), batch_of(uneven, restarts=restarts) as env:
        found = steps(env, 8)
    assert restarts.used == 1
    done = found["next", "done"].squeeze(-1)
    assert done[2].nonzero().flatten().tolist() == [3]
    assert done[3].nonzero().flatten().tolist() == [4]  # lost in the reset after the fourth step
    assert torch.equal(found["next", "observation"][3, 4], found["next", "observation"][3, 3])
    assert torch.equal(found["observation"][3, 4], found["next", "observation"][3, 3])


def test_several_workers_that_hang_are_detected_within_one_time_limit() -> None:
    with batch_of(Faulty("sleeping", seeds=[0, 2])) as env:
        begun = time.monotonic()
        with pytest.warns(UserWarning, match="worker 2"):
            found = steps(env, 4)
    assert time.monotonic() - begun < 8
    assert found["next", "truncated"][:, 2].all()


def test_the_fourth_failure_ends_the_run() -> None:
    restarts = Restarts()
    with batch_of(Faulty("raising"), restarts=restarts) as env:
        cause = r"^faulty: worker \d of 2 .* raised FloatingPointError: .*; 3 processes have been replaced before$"
        with pytest.warns(UserWarning), pytest.raises(EnvironmentFailure, match=cause):
            steps(env, 30)
    assert restarts.used == RESTARTS


def test_failed_constructions_are_not_retried() -> None:
    restarts = Restarts()
    cause = r"^faulty: worker 1 of 2 .* failed: ValueError: cannot be constructed \(faulty.py:\d+ in make\)$"
    with pytest.raises(EnvironmentFailure, match=cause):
        WorkerBatch(Faulty("", call="make"), 4, 2, 0, 1.0, restarts)
    assert restarts.used == 0 and not multiprocessing.active_children()


@pytest.mark.parametrize("environment", [cartpole(), Maze()])
def test_a_snapshot_continues_in_mid_episode(environment: Environment) -> None:
    plain = environment.make(4, 3)
    steps(plain, 7)
    plain.restore(plain.snapshot())
    with batch_of(environment, seed=3) as env, batch_of(environment, seed=90) as again:
        steps(env, 7)
        again.restore(env.snapshot() or {})
        assert equal(steps(again, 30), steps(plain, 30))


def test_a_snapshot_holds_the_global_random_state_of_the_workers() -> None:
    class Drawn(MazeBatch):
        def move(self, position: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return super().move(position, action * torch.rand(1))

    class Draws(Maze):
        def make(self, num_envs: int, seed: int) -> MazeBatch:
            return Drawn(self, num_envs, seed)

    with batch_of(Draws(), seed=3) as env, batch_of(Draws(), seed=90) as again:
        steps(env, 7)
        snapshot = env.snapshot() or {}
        again.restore(snapshot)
        found = steps(again, 30)
        env.restore(snapshot)
        assert equal(steps(env, 30), found)


def test_an_environment_without_snapshots_has_none() -> None:
    with batch_of(Gym("Pendulum-v1")) as env:
        steps(env, 2)
        assert env.snapshot() is None
        assert len(steps(env, 2)) == 4


def test_workers_ignore_signals_to_all_processes_of_a_run() -> None:
    with batch_of(Maze()) as env:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            for worker in env._workers:
                os.kill(worker.pid, number)
        assert equal(steps(env, 10), steps(Maze().make(4, 0), 10))


def test_set_seed_seeds_the_members() -> None:
    with batch_of(Maze(), seed=3) as env:
        env.set_seed(40)
        assert torch.equal(env.reset()["position"], Maze().make(4, 40).reset()["position"])
