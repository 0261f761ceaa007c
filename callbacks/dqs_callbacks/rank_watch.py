"""Ends a rank when another one is lost, instead of waiting for it for half an hour."""

import contextlib
import itertools
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable

import lightning as L
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch.distributed.distributed_c10d import Store, _get_default_store

from dqs_lightning.ranges import Positive, checked
from dqs_lightning.stop_signal import STOP

EXIT_CODE = 6
"""Exit code of a rank that ends because another one is lost; the run can be continued."""
ANSWER_S = 3.0
"""Seconds that the store has to answer."""
BEATS = 9
"""Signs of life in the longest silence that is tolerated."""


def first_to_report(store: Store | None = None) -> bool:
    """Returns whether this rank is the first that asks, so that one rank prints what all of them find.

    Where the store, by default that of the process group, does not answer, it is the first rank of this machine.
    """
    answers: list[int] = []

    def ask() -> None:
        with contextlib.suppress(RuntimeError):  # the process that holds the store is gone
            answers.append((store or _get_default_store()).add("reports", 1))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    if answers:
        return answers[0] == 1
    return os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"


def lost_connection(error: BaseException) -> str | None:
    """Returns why a collective operation has failed, where it is that another rank has gone; None for other errors."""
    if isinstance(error, RuntimeError) and (found := re.search(r"gloo/transport\S+ (.*?)(?:\. |$)", str(error))):
        return found[1]  # gloo has no exception of its own
    return " ".join(str(error).split())[:200] if isinstance(error, dist.DistError) else None


class RankWatch(Callback):
    """Ends this process with exit code 6 when another rank gives no sign of life for `silence_s`.

    Ranks whose process has died are noticed at once, by the connections that it closes. A rank that hangs, or whose
    machine has lost power or network, closes none, and without this callback the others wait for it for the time limit
    of the process group, half an hour. Each rank writes a number to the process group's store several times in
    `silence_s`; the first rank watches all others, and they watch the first. The cause is printed once. A run on one
    rank is not changed.

    Args:
        silence_s: seconds without a sign of life after which a rank is lost; > 0.
        enabled: false switches it off.
    """

    @checked
    def __init__(self, silence_s: Positive = 40.0, enabled: bool = True) -> None:
        self.silence_s, self.enabled = silence_s, enabled
        self._watch: Watch | None = None
        self._store: Store | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.enabled and stage == "fit" and trainer.world_size > 1 and dist.is_initialized():
            # With a connection of its own, since each call locks one.
            self._store = _get_default_store().clone()  # type: ignore[attr-defined]  # not in the stubs
            self._watch = Watch(self._store, trainer.global_rank, trainer.world_size, self.silence_s, self._end)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")
        if self.enabled and lost_connection(exception):
            # Lightning would kill this process too, without a word, where a rank that it has started ends.
            processes = getattr(trainer.strategy.launcher, "procs", [])
            for process in processes:
                process.kill()
                process.wait()
            processes.clear()

    def _end(self, rank: int, machine: str) -> None:
        if first_to_report(self._store):
            who = f"rank {rank} on {machine}" if machine else f"rank {rank}"
            text = f"dqs-fit: {who} has given no sign of life for {self.silence_s:g} s; the run can be continued"
            print(text, file=sys.stderr, flush=True)
        STOP.abandon()
        os._exit(EXIT_CODE)  # the main thread may wait in C++ for the other rank


class Watch:
    """Writes signs of life of one rank to a store, and calls a function when another rank gives none.

    Args:
        store: shared by all ranks.
        rank: this rank.
        ranks: their number.
        silence_s: as in `RankWatch`.
        lost: called once, in another thread, with a rank that is lost, and its machine's name where it is known.
    """

    def __init__(self, store: Store, rank: int, ranks: int, silence_s: float, lost: Callable[[int, str], None]) -> None:
        self.store, self.rank, self.interval_s, self.silence_s, self.lost = (
            store,
            rank,
            silence_s / BEATS,
            silence_s,
            lost,
        )
        self.others = range(1, ranks) if rank == 0 else range(1)
        self._signs = dict.fromkeys(self.others, "")
        self._last = dict.fromkeys(self.others, time.monotonic())
        self._ended = threading.Event()
        for target in (self._beat, self._watch):  # two, because reading from an unreachable store never ends
            threading.Thread(target=target, name="rank-watch", daemon=True).start()

    def stop(self) -> None:
        """Ends the threads."""
        self._ended.set()

    def _beat(self) -> None:
        host = socket.gethostname()
        for beat in itertools.count():
            try:
                self.store.set(f"alive/{self.rank}", f"{beat} {host}")
                for rank in self.others:
                    key = f"alive/{rank}"
                    if self.store.check([key]) and (sign := self.store.get(key).decode()) != self._signs[rank]:
                        self._signs[rank], self._last[rank] = sign, time.monotonic()
            except RuntimeError:  # the process that holds the store is gone
                pass
            if self._ended.wait(self.interval_s):
                return

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._ended.wait(self.interval_s):
            now = time.monotonic()
            if now - before > self.silence_s / 2:  # this process itself was suspended
                self._last = dict.fromkeys(self.others, now)
            before = now
            silent = min(self.others, key=self._last.__getitem__)
            if now - self._last[silent] > self.silence_s:
                self.lost(silent, self._signs[silent].partition(" ")[2])
                return
