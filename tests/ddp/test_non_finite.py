"""Tests that a non-finite value on one of two ranks stops both."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dqs_lightning.checkpoint.archive import safe_load


@pytest.mark.ddp
def test_both_ranks_stop_at_a_non_finite_value_on_one(tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("faulty_rank.py"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script, str(tmp_path)], env=environment, capture_output=True, timeout=240)
    assert done.returncode == 3, done.stderr[-3000:]
    messages = [(tmp_path / f"rank-{rank}.txt").read_text() for rank in range(2)]
    assert "update 3: another rank has found a non-finite value, which its message names" in messages[0]
    assert "update 3: reward in the batch is inf; must be at most 1.8e+19" in messages[1]
    checkpoint = safe_load(tmp_path / "last.ckpt")
    assert checkpoint["global_step"] == 2
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
