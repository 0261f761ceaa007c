"""A search as a user runs it: it is killed in the middle of a run, and the same command continues it.

It needs Ray; see test_sweep_runs.py, also for why there is only one test.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MAZE = str(Path(__file__).parents[2] / "configs" / "maze.yaml")
SMALL = [
    "model=SAC", "model.critic_backbone.hidden=[8]", "model.actor_backbone.hidden=[8]", "data.init_random_frames=64",
    "data.num_envs=8", "data.updates_per_step=0.25", "data.total_frames=512",
    "evaluate.every_frames=64", "evaluate.episodes=2",
]  # fmt: skip
SEARCH = {
    "parameters": {"model.tau": {"low": 0.001, "high": 0.5, "log": True}, "data.batch_size": {"low": 4, "high": 16}},
    "trials": 3,
    "random_trials": 2,
    "prune": {"startup_trials": 1},
}


def command(folder: Path, out: str) -> list[str]:
    content = {"config": MAZE, "seeds": [3], "overrides": SMALL, "search": SEARCH}
    (folder / "s.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return [sys.executable, "-m", "dqs_lightning.cli.sweep", "s.yaml", "--jobs=1", f"--out={out}"]


def manifest(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return content


def test_a_killed_search_is_continued_by_the_same_command_with_the_same_trials(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason='Ray is not installed: pip install "dqs-lightning[sweep]"')
    pytest.importorskip("optuna", reason='Optuna is not installed: pip install "dqs-lightning[sweep]"')
    whole = subprocess.run(command(tmp_path, "whole"), cwd=tmp_path, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    first = subprocess.Popen(
        command(tmp_path, "killed"), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    second_run = tmp_path / "killed" / "maze" / "trial-001" / "seed=3"
    while not (second_run / "scores.jsonl").exists():  # its first evaluation
        assert first.poll() is None
        time.sleep(0.02)
    os.killpg(first.pid, 9)  # with Ray's processes
    first.wait()
    left = manifest(tmp_path / "killed")
    assert len(left["trials"]) == 2 and left["trials"][0]["state"] == "done"
    again = subprocess.run(command(tmp_path, "killed"), cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    one, other = manifest(tmp_path / "whole"), manifest(tmp_path / "killed")
    assert one["trials"] == other["trials"] and len(one["trials"]) == 3
    assert {trial["state"] for trial in one["trials"]} <= {"done", "pruned"}
    assert all(run["state"] in ("done", "pruned") for run in other["runs"].values())
    log = (tmp_path / "killed" / "maze" / "trial-000" / "seed=3" / "log.txt").read_text()
    assert log.count("$ dqs-fit") == 1  # what was finished was not started again
    for trial, (name, run) in zip(one["trials"], one["runs"].items(), strict=True):
        if run["state"] == "pruned":
            assert run["exit_code"] == 75 and trial["state"] == "pruned"
            assert (tmp_path / "whole" / name / "checkpoints" / "last.ckpt").is_file()
    table = (tmp_path / "whole" / "best.md").read_text()
    assert table == (tmp_path / "killed" / "best.md").read_text() and table in whole.stdout
    assert whole.stdout.count(" done ") >= 1 and not list((tmp_path / "whole").rglob(".stop*"))
