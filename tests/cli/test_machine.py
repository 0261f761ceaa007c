"""Thread and memory settings that the commands make for the machine they run on."""

import ctypes
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from dqs_lightning.agents import DQS
from dqs_lightning.cli import machine
from dqs_lightning.diffusion import MLP

SECOND = int(machine.WEIGHTS_PER_THREAD**0.5 * 2**0.5) + 1
"""Width of a hidden layer for which a second thread is used."""


@pytest.fixture(autouse=True)
def same_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_default_networks_have_one_thread_on_any_machine() -> None:
    assert [machine.threads_for(DQS(24, 6), cores) for cores in (1, 2, 64)] == [1, 1, 1]


def test_wide_networks_have_several_threads_and_not_more_than_cores() -> None:
    wide = DQS(24, 6, critic_backbone=MLP((SECOND, SECOND)))
    assert [machine.threads_for(wide, cores) for cores in (1, 2, 64)] == [1, 2, 2]
    assert machine.threads_for(nn.Linear(2**12, 2**12), 4) == 4


@pytest.mark.parametrize(
    "given, variable, processes, expected",
    [(None, None, 1, 2), (None, None, 2, 1), (3, None, 1, 3), (3, "2", 1, 3), (None, "5", 1, None)],
    ids=["by-size", "cores-are-shared", "flag", "flag-before-variable", "variable"],
)
def test_the_number_of_threads_follows_option_variable_network_size_and_cores(
    given: int | None,
    variable: str | None,
    processes: int,
    expected: int | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With OMP_NUM_THREADS set, torch's own number of threads is kept: torch read the variable when it was imported."""
    monkeypatch.setattr(machine, "available_cores", lambda: 2)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    before = torch.get_num_threads()
    with caplog.at_level(logging.INFO, "dqs_lightning"):
        found = machine.set_threads(given, nn.Linear(2**10, 2**10), processes)
    assert found == torch.get_num_threads() == (before if expected is None else expected)
    chosen = given is None and variable is None
    assert caplog.messages == [f"torch threads: {found} (cores: 2); --threads sets another number"] * chosen


@pytest.mark.parametrize(
    "text, expected", [("max 100000", None), ("150000 100000", 1), ("50000 100000", 1), ("what", None)]
)
def test_available_cores_respect_cpu_affinity_and_cgroup_quota(
    text: str, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(text)
    monkeypatch.setattr(machine, "QUOTA", quota)
    affinity = len(os.sched_getaffinity(0))
    assert machine.available_cores() == (affinity if expected is None else min(expected, affinity))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt")
@pytest.mark.parametrize("own, kept", [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "131072"}, False)])
def test_freed_memory_is_reused_without_new_page_faults(own: dict[str, str], kept: bool) -> None:
    """100 blocks of 4 MB, freed and allocated again, cause 1,024 page faults each; reused ones only at first."""
    code = (
        "import ctypes, resource; from dqs_lightning.cli.machine import keep_freed_memory; keep_freed_memory()\n"
        "libc = ctypes.CDLL(None); libc.malloc.restype = ctypes.c_void_p\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(100):\n"
        "    block = ctypes.c_void_p(libc.malloc(2**22)); ctypes.memset(block, 1, 2**22); libc.free(block)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | own
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (int(done.stdout) < 10 * 1024) is kept
