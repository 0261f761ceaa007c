"""Tests that a fault of one of two ranks stops both."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dqs_lightning.checkpoint.archive import safe_load

pytestmark = pytest.mark.ddp


def messages_of(folder: Path, fault: str) -> list[str]:
    """Runs faulty_rank.py; returns the messages with which its ranks have ended."""
    script = str(Path(__file__).with_name("faulty_rank.py"))
    command, environment = [sys.executable, script, str(folder), fault], {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=240)
    assert done.returncode == 3, done.stderr[-3000:]
    return [(folder / f"rank-{rank}.txt").read_text() for rank in range(2)]


def test_both_ranks_stop_at_a_non_finite_value_on_one(tmp_path: Path) -> None:
    messages = messages_of(tmp_path, "reward")
    assert "update 3: norm of the gradient of critic" in messages[0]
    assert "averaged over ranks, of which another one may name the cause" in messages[0]
    assert "update 3: reward in the batch is inf; must be at most 1.8e+19" in messages[1]
    checkpoint = safe_load(tmp_path / "last.ckpt")
    assert checkpoint["global_step"] == 2
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_both_ranks_stop_and_save_when_the_environments_of_an_evaluation_fail(tmp_path: Path) -> None:
    messages = messages_of(tmp_path, "evaluation")
    assert messages[0].startswith("faulty: step raised FloatingPointError")
    assert messages[1] == "another rank has failed and gives the cause"
    assert not (tmp_path / "scores.jsonl").exists()
    checkpoint = safe_load(tmp_path / "last.ckpt")
    assert checkpoint["env_frames"] == 32 and not checkpoint["finished"]
    assert all((tmp_path / f"step={checkpoint['global_step']}-frames=32-rank={rank}.pt").exists() for rank in (0, 1))
