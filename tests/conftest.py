"""Configuration of all tests: a fixed seed, one thread, and no renderer."""

import logging
import os

os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MUJOCO_GL", "disabled")

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from faults.runs import Launcher
from torch import nn

from dqs_lightning.envs.dm_control import INSTALLED, NOT_INSTALLED


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """Restores the package's logger, whose lines a command that runs in this process writes to stderr alone."""
    package = logging.getLogger("dqs_lightning")
    before = package.handlers[:], package.level, package.propagate
    yield
    package.handlers[:], package.level, package.propagate = before


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """Starts commands as forks of one process that has imported the library, which saves the seconds of the imports."""
    tests = Path(__file__).parent
    found = Launcher([tests / "ddp", tests.parent / "docs" / "examples" / "tasks"])
    yield found
    found.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Reports a test that failed because DMControl was refused as skipped, where dm_control is not installed."""
    report = yield
    if report.failed and not INSTALLED and NOT_INSTALLED in report.longreprtext + report.capstderr:
        report.outcome, report.longrepr = "skipped", (str(item.path), item.location[1], f"DMControl {NOT_INSTALLED}")
    return report


def pytest_make_parametrize_id(val: object) -> str | None:
    """Returns an object's class name as its id if its representation is an address, which differs between processes."""
    return type(val).__name__ if type(val).__repr__ in (object.__repr__, nn.Module.__repr__) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves the slowest files to the front, so that no worker runs one of them alone at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("ddp")}
    items.sort(key=lambda item: item.path not in slow)
