"""Tests that two ranks with batches of B rows learn what one rank learns from the same 2 B rows."""

from pathlib import Path

import pytest
import torch
from equivalence import AGENTS
from faults.runs import Launcher
from torch import Tensor

pytestmark = pytest.mark.ddp
States = dict[str, Tensor]


@pytest.fixture(scope="module")
def folder(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The states of all agents before and after their updates, on one rank and on two."""
    found = tmp_path_factory.mktemp("states")
    for ranks in (1, 2):
        ended, err = launcher.run([str(ranks)], found, 240, ranks=ranks, module="equivalence")
        assert ended.code == 0, err[-3000:]
    return found


@pytest.mark.parametrize("agent", AGENTS)
def test_two_ranks_learn_what_one_learns_from_a_batch_of_twice_the_size(folder: Path, agent: str) -> None:
    """After 100 steps of gradient descent: weights, target networks, normalisation and temperature."""
    one, two = (torch.load(folder / f"{agent}-{ranks}.pt") for ranks in (1, 2))
    moved = [name for name, value in one["after"].items() if not torch.equal(value, one["before"][name])]
    assert len(moved) > len(one["after"]) / 2 and "observation_norm.mean" in moved
    if agent.startswith("DQS"):
        assert any(name.startswith("temperature") for name in moved)
    for name, value in one["after"].items():
        difference = (two["after"][name].double() - value.double()).abs().max() if value.numel() else 0
        assert difference <= 1e-6, name
