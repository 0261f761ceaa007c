import os
import threading
from itertools import pairwise
from pathlib import Path

import pytest

from dqs_callbacks.rank_cores import own_share, restrict

needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="an affinity is Linux's")


def machine(monkeypatch: pytest.MonkeyPatch, cores: set[int], of_machine: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: cores, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: of_machine)


@pytest.mark.parametrize(("cores", "processes"), [(2, 2), (4, 2), (7, 3), (64, 8)])
def test_shares_are_even_and_cover_all_cores_once(monkeypatch: pytest.MonkeyPatch, cores: int, processes: int) -> None:
    machine(monkeypatch, set(range(cores)), cores)
    shares = [own_share(index, processes) for index in range(processes)]
    assert sorted(core for share in shares for core in share) == list(range(cores))
    assert all(abs(len(one) - len(other)) <= 1 for one, other in pairwise(shares))


@pytest.mark.parametrize(("cores", "of_machine", "processes"), [(2, 2, 3), (2, 64, 2), (8, 16, 2)])
def test_too_few_cores_and_those_that_were_chosen_already_are_not_divided(
    monkeypatch: pytest.MonkeyPatch, cores: int, of_machine: int, processes: int
) -> None:
    machine(monkeypatch, set(range(cores)), of_machine)
    assert own_share(0, processes) == []


@needs_affinity
def test_all_threads_of_the_process_are_restricted_and_later_ones_inherit_it() -> None:
    before, ended = os.sched_getaffinity(0), threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        restrict([min(before)])
        later = threading.Thread(target=ended.wait)
        later.start()
        threads = [int(each.name) for each in Path("/proc/self/task").iterdir()]
        assert {thread.native_id, later.native_id} <= set(threads)
        assert all(os.sched_getaffinity(each) == {min(before)} for each in threads)
    finally:
        restrict(before)
        ended.set()
    assert os.sched_getaffinity(0) == before
