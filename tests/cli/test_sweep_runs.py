"""A sweep as a user runs it: it is stopped by a signal, and the same command skips finished runs and continues.

It needs Ray, which is too large for the packages of the test session: `pip install "dqs-lightning[sweep]"`. There is
one test only, because several would start the processes once for each worker of pytest-xdist.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from dqs_lightning.cli.sweep import FAILED
from dqs_lightning.cli.sweep_manifest import Manifest
from dqs_lightning.cli.sweep_plan import expand

pytestmark = pytest.mark.slow

MAZE = str(Path(__file__).parents[2] / "configs" / "maze.yaml")
SMALL = [
    "model=SAC", "model.critic_backbone.hidden=[8]", "model.actor_backbone.hidden=[8]", "data.init_random_frames=64",
    "data.num_envs=8", "data.batch_size=8", "evaluate.every_frames=800", "evaluate.episodes=2",
    "evaluate.at_start=true",
]  # fmt: skip
VARIANTS = {"done": ["data.total_frames=96"], "wrong": ["data.n_steps=0"], "long": ["data.total_frames=1600"]}


class Swept:
    """A sweep of three runs: one is done, one cannot be started, and one is stopped by SIGTERM and continued."""

    def __init__(self, folder: Path) -> None:
        file, self.out = folder / "s.yaml", folder / "runs" / "sweeps" / "s"
        content = {"config": MAZE, "seeds": [3], "overrides": SMALL, "variants": VARIANTS}
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        runs = expand(file, self.out)
        (runs[0].folder / "checkpoints").mkdir(parents=True)
        (runs[0].folder / "checkpoints" / "last.ckpt").touch()
        before = Manifest(self.out, runs)
        before.started(runs[0])
        before.ended(runs[0], 0, 1.5, asked=False)
        self.command = [sys.executable, "-m", "dqs_lightning.cli.sweep", "s.yaml", "--jobs=2"]
        environment = {**os.environ, "DQS_RUN_DIR": str(folder / "astray")}  # as in a process started by a run
        self.first = subprocess.Popen(
            self.command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        # The long run has its evaluation before training, and the invalid one has ended.
        while not (self.run("long") / "scores.jsonl").exists() or self.manifest()["wrong"]["state"] != "failed":
            assert self.first.poll() is None, self.first.communicate()
            time.sleep(0.05)
        self.first.send_signal(signal.SIGTERM)
        self.first_out, self.first_err = self.first.communicate(timeout=240)
        self.stopped = self.manifest()
        self.second = subprocess.run(self.command, cwd=folder, env=environment, capture_output=True, text=True)
        self.finished = self.manifest()

    def run(self, variant: str) -> Path:
        return self.out / "maze" / variant / "seed=3"

    def manifest(self) -> dict[str, Any]:
        content = json.loads((self.out / "manifest.json").read_text())
        runs = {name.split("/")[1]: record for name, record in content.pop("runs").items()}
        return {**content, **runs}

    def tries(self, variant: str) -> int:
        log = self.run(variant) / "log.txt"
        lines = log.read_text().splitlines() if log.exists() else []
        return sum(line.startswith("$ dqs-fit") for line in lines)


def check_that_a_signal_stops_the_runs_in_order(swept: Swept) -> None:
    assert swept.first.returncode == 75, swept.first_err
    assert {name: swept.stopped[name]["state"] for name in VARIANTS} == {
        "done": "done", "wrong": "failed", "long": "stopped",
    }  # fmt: skip
    assert swept.stopped["long"]["exit_code"] == 75  # it stopped itself, with a checkpoint
    assert "1 done, 1 stopped, 1 failed" in swept.first_out


def check_that_the_same_command_skips_and_continues(swept: Swept) -> None:
    assert swept.finished["done"] == swept.stopped["done"] and swept.tries("done") == 0
    long = swept.finished["long"]
    assert long["state"] == "done" and long["exit_code"] == 0 and swept.tries("long") == 2
    assert long["start"] == swept.stopped["long"]["start"] and long["wall_s"] > swept.stopped["long"]["wall_s"]
    rows = [json.loads(line) for line in (swept.run("long") / "scores.jsonl").read_text().splitlines()]
    assert [row["env_frames"] // 800 for row in rows] == [0, 1, 2]
    first, second = json.loads((swept.run("long") / "run.json").read_text())["starts"]
    assert first["command"] == long["command"] and set(second) == {"time"}  # everything else is unchanged
    assert not (swept.out.parents[2] / "astray").exists()


def check_that_a_run_that_fails_is_named_and_the_others_go_on(swept: Swept) -> None:
    assert swept.second.returncode == FAILED, swept.second.stderr
    wrong = swept.finished["wrong"]
    assert wrong["state"] == "failed" and wrong["exit_code"] == 2 and swept.tries("wrong") == 2
    assert wrong["note"].startswith("dqs-fit: data.n_steps=0: must be >= 1")
    line = next(line for line in swept.second.stdout.splitlines() if line.startswith("maze/wrong/seed=3  failed  "))
    assert line.endswith(wrong["note"]) and "2 done, 1 failed" in swept.second.stdout


def check_that_the_manifest_holds_commands_and_versions(swept: Swept) -> None:
    manifest = swept.finished
    assert manifest["sweep"]["seeds"] == [3] and manifest["sweep"]["file"] == "s.yaml"
    assert (
        manifest["environment"]["command"] == ["dqs-sweep", "s.yaml", "--jobs=2"] and manifest["environment"]["torch"]
    )
    assert manifest["long"]["command"][-2:] == [f"--run_dir={swept.run('long')}", "--ckpt_path=auto"]
    assert not [path for path in swept.out.glob(".*") if path.name != ".lock"]


def test_a_sweep_is_stopped_by_a_signal_and_continued_by_the_same_command(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason='Ray is not installed: pip install "dqs-lightning[sweep]"')
    swept = Swept(tmp_path)
    check_that_a_signal_stops_the_runs_in_order(swept)
    check_that_the_same_command_skips_and_continues(swept)
    check_that_a_run_that_fails_is_named_and_the_others_go_on(swept)
    check_that_the_manifest_holds_commands_and_versions(swept)
