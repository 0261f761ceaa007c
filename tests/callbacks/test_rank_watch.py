"""Ranks that watch one another, on a store in this process."""

import queue
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from dqs_callbacks.rank_watch import Watch, first_to_report, lost_connection

SILENCE_S = 0.9


class Ranks:
    """Watches of several ranks, and what they have found."""

    def __init__(self, number: int) -> None:
        self.found: queue.Queue[tuple[int, int]] = queue.Queue()
        store = dist.HashStore()
        self.watches = [
            Watch(store, rank, number, SILENCE_S, lambda lost, machine, rank=rank: self.found.put((rank, lost)))
            for rank in range(number)
        ]

    def stop(self) -> None:
        for watch in self.watches:
            watch.stop()


def test_ranks_that_live_are_not_lost() -> None:
    ranks = Ranks(3)
    time.sleep(3 * SILENCE_S)
    ranks.stop()
    assert ranks.found.empty()


@pytest.mark.parametrize(("silent", "found"), [(2, [(0, 2)]), (0, [(1, 0), (2, 0)])])
def test_a_silent_rank_is_found_by_the_first_and_a_silent_first_rank_by_all_others(
    silent: int, found: list[tuple[int, int]]
) -> None:
    ranks = Ranks(3)
    time.sleep(SILENCE_S / 2)
    ranks.watches[silent].stop()
    assert sorted(ranks.found.get(timeout=5 * SILENCE_S) for _ in found) == found
    ranks.stop()
    assert ranks.found.empty()


def test_a_store_that_is_gone_counts_as_the_first_rank() -> None:
    server = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    client = dist.TCPStore("localhost", server.port, is_master=False, timeout=timedelta(seconds=5))
    found: queue.Queue[int] = queue.Queue()
    watch = Watch(client, 1, 2, SILENCE_S, lambda lost, machine: found.put(lost))
    first = Watch(server, 0, 2, SILENCE_S, lambda lost, machine: None)
    time.sleep(SILENCE_S)
    first.stop()
    time.sleep(SILENCE_S / 4)
    del first, server
    assert found.get(timeout=10 * SILENCE_S) == 0
    watch.stop()


def test_one_of_several_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a store it is the first of its machine."""
    store = dist.HashStore()
    assert [first_to_report(store) for _ in range(3)] == [True, False, False]
    server = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    gone = dist.TCPStore("localhost", server.port, is_master=False)
    del server
    for local, expected in (("0", True), ("1", False)):
        monkeypatch.setenv("LOCAL_RANK", local)
        assert first_to_report(gone) is expected


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (
            RuntimeError(
                "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.77.0.2]:155. "
                "This is typically caused by a remote worker crashing."
            ),
            "Connection closed by peer [10.77.0.2]:155",
        ),
        (dist.DistBackendError("NCCL error:\n remote process exited"), "NCCL error: remote process exited"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    ],
)
def test_only_errors_of_a_lost_connection_are_recognised(error: RuntimeError, cause: str | None) -> None:
    assert lost_connection(error) == cause
