"""Blocks that a process collects ahead: exact weights, and a process that fails is replaced."""

import multiprocessing
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty import RETURNED, Faulty, ended
from helpers import small_agent, small_data, trainer
from tensordict import TensorDictBase

from dqs_callbacks import Throughput
from dqs_lightning.collection.collectors import Ahead
from dqs_lightning.envs import EnvironmentFailure
from dqs_lightning.envs.restarts import RESTARTS, Restarts

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
def ahead_of(environment: Faulty, restarts: Restarts, losses: list[str] | None = None) -> Iterator[Ahead]:
    """Blocks of four steps of two environments, all at random."""
    agent = small_agent(small_data(environment=environment))
    noted = [] if losses is None else losses
    ahead = Ahead(environment, 2, agent, 8, 10_000, 5, lambda: 0, 1.0, restarts, lambda: noted.append("lost"))
    first = ahead._process.pid
    try:
        yield ahead
    finally:
        last = ahead._process.pid
        ahead.shutdown()
    assert ended(first) and ended(last)


def blocks(ahead: Ahead, number: int) -> list[TensorDictBase]:
    return [block for block, _ in zip(ahead, range(number), strict=False)]


@pytest.mark.parametrize("fault", list(CAUSES))
def test_a_process_that_fails_is_replaced_and_collects_the_block_anew(fault: str) -> None:
    restarts, losses = Restarts(), []
    with ahead_of(Faulty(fault, at=6, seeds=[5]), restarts, losses) as ahead:
        first, begun = ahead._process.pid, time.monotonic()
        with pytest.warns(UserWarning) as warned:
            found = blocks(ahead, 3)
        assert ended(first)
    (text,) = [str(warning.message) for warning in warned]
    who, what = "faulty: the process that collects", r"replaced \(1 of at most 3\), 2 episodes are lost"
    assert re.fullmatch(f"{who} failed: {CAUSES[fault]}; {what}", text), text
    assert (restarts.used, restarts.lost_episodes, losses) == (1, 2, ["lost"])
    assert time.monotonic() - begun < 15
    for before, after in pairwise(found):
        assert before.batch_size == (2, 4) and before["next", "observation"].dtype == torch.float32
        joined = torch.equal(before["next", "observation"][:, -1], after["observation"][:, 0])
        assert joined == (before is found[1])  # the first block's episodes do not go on


def test_the_fourth_failure_ends_the_run() -> None:
    restarts = Restarts()
    cause = "^faulty: the process that collects failed: it was killed by SIGKILL; 3 processes have been replaced"
    with (
        ahead_of(Faulty("killed"), restarts) as ahead,
        pytest.warns(UserWarning),
        pytest.raises(EnvironmentFailure, match=cause),
    ):
        blocks(ahead, 3)
    assert restarts.used == RESTARTS


def test_a_failure_at_construction_is_not_repeated() -> None:
    restarts, data = Restarts(), small_data(environment=Faulty(""))
    cause = r"^faulty: the process that collects failed: ValueError: cannot be constructed \(faulty.py:\d+ in make\)$"
    with pytest.raises(EnvironmentFailure, match=cause):
        Ahead(Faulty("", call="make"), 2, small_agent(data), 8, 0, 5, lambda: 0, 1.0, restarts, lambda: None)
    assert restarts.used == 0 and not multiprocessing.active_children()


def test_the_process_acts_with_the_weights_of_the_request() -> None:
    data = small_data(environment=Faulty(""))
    agent = small_agent(data)
    for parameter in agent.parameters():
        parameter.data.mul_(1.1)  # not representable in fewer digits
    ahead = Ahead(Faulty(""), 2, agent, 8, 0, 5, lambda: 0, 10.0, Restarts(), lambda: None)
    try:
        collected = iter(ahead)
        first = next(collected)
        with torch.random.fork_rng():
            torch.manual_seed(5)
            agent(first["observation"][:, 0])  # the collector looks once at what the policy returns
            expected = torch.stack([agent(first["observation"][:, step]) for step in range(4)], 1)
        assert torch.equal(first["action"], expected)
        assert ahead.age == 0
    finally:
        ahead.shutdown()


def test_a_run_goes_on_and_joins_no_steps_of_different_episodes(tmp_path: Path) -> None:
    data = small_data(
        environment=Faulty("killed", at=90, call="step"),  # each process, in its 90th step
        num_envs=2,
        total_frames=600,
        init_random_frames=64,
        n_steps=3,
        asynchronous=True,
        updates_per_step=0.1,
    )
    run = trainer(tmp_path, [Throughput()], log_every_n_steps=1)
    with pytest.warns(UserWarning, match="killed by SIGKILL"):
        run.fit(small_agent(data), data)
    assert data.env_frames == 608
    assert data.restarts.used == run.callback_metrics["time/worker_restarts"] == 3
    replay: dict[str, Any] = data.rank_state()["replay"]
    moved = (replay["next"]["observation"] - replay["observation"]).abs()
    assert (moved <= 3 * 0.02 + 1e-6).all()  # an episode begins elsewhere
