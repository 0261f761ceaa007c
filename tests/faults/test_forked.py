"""Tests of forked training commands and of the bitwise comparison of two runs."""

import os
import shutil
import signal

import pytest
from faults.compare import unequal
from faults.hooks import MARKS, hook, pause
from faults.study import Lab
from faults.tasks import RUN, arguments

from dqs_lightning.checkpoint.archive import atomic_save, safe_load


@pytest.mark.slow
def test_differences_between_two_runs_are_found(lab: Lab) -> None:
    run = lab.reference("resume-maze-DQS-1-0", arguments("maze")) / RUN
    assert unequal(run, run) == []
    other = lab.work / "changed"
    shutil.copytree(run, other)
    checkpoint = safe_load(other / "checkpoints" / "last.ckpt")
    name, weight = next(iter(checkpoint["state_dict"].items()))
    weight.view(-1)[0] += 1e-6
    atomic_save(checkpoint, other / "checkpoints" / "last.ckpt")
    lines = (other / "scores.jsonl").read_text().splitlines()
    (other / "scores.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    assert unequal(run, other) == [
        f"checkpoint: shared.state_dict.{name}",
        f"scores.jsonl:  (lengths {len(lines)} and {len(lines) - 1})",
    ]
    (other / "checkpoints" / "last.ckpt").unlink()
    assert "no such checkpoint file" in unequal(run, other)[0]


@pytest.mark.slow
def test_the_exit_code_and_error_message_of_a_forked_command_are_returned(lab: Lab) -> None:
    refused, err = lab.launcher.run([*arguments("maze"), "--data.total_frames=0"], lab.place("refused"))
    assert refused.code == 2 and refused.left == [] and "total_frames" in err


@pytest.mark.slow
def test_a_forked_run_can_be_paused_and_killed_with_all_its_ranks(lab: Lab) -> None:
    place = lab.place("held")
    hold = hook(pause, target="dqs_lightning.collection.loader:OnlineLoader._start", ranks=[0, 1])
    run = lab.launcher.start(arguments("maze", ranks=2), place, ranks=2, hooks=[hold])
    ranks = {run.marked("paused-0"), run.marked("paused-1")}
    assert len(ranks) == 2 and set(run.processes()) == ranks
    os.killpg(run.pid, signal.SIGKILL)
    ended = run.end(10)
    assert ended.code == -signal.SIGKILL and ended.left == []
    assert {path.name for path in (place / MARKS).iterdir()} == {"paused-0", "paused-1"}
