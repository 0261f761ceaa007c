"""A sweep as a user runs it: it is stopped by a signal, and the same command skips what is done and goes on.

It wants Ray, which is too large for the test session's packages: `pip install ".[sweep]"`.
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

CARTPOLE = str(Path(__file__).parents[2] / "configs" / "cartpole.yaml")
SMALL = [
    "data.init_random_frames=200", "data.batch_size=16", "data.environment.action_repeat=4",
    "model.critic_backbone.hidden=[16,16]", "model.actor_backbone.hidden=[16,16]",
    "model.energy_estimator.num_samples=4", "model.sampler.steps=2", "evaluate.every_frames=400", "evaluate.episodes=2",
]  # fmt: skip


class Swept:
    """A sweep of three runs that was stopped by SIGTERM while the third was at work, and then run again."""

    def __init__(self, folder: Path) -> None:
        variants = {
            "short": ["data.total_frames=400"],
            "wrong": ["data.n_steps=0"],
            "long": ["data.total_frames=2400"],
        }
        content = {"config": CARTPOLE, "seeds": [3], "overrides": SMALL, "variants": variants}
        (folder / "s.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        self.out = folder / "runs" / "sweeps" / "s"
        self.command = [sys.executable, "-m", "dqs_lightning.cli.sweep", "s.yaml", "--jobs=2"]
        environment = {**os.environ, "DQS_RUN_DIR": str(folder / "astray")}  # as a run's own process has it
        self.first = subprocess.Popen(
            self.command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        # The third has written an evaluation: training is under way.
        while not (scores := self.run("long") / "scores.jsonl").exists() or not scores.read_text():
            assert self.first.poll() is None, self.first.communicate()
            time.sleep(0.05)
        self.first.send_signal(signal.SIGTERM)
        self.first_out, self.first_err = self.first.communicate(timeout=120)
        self.stopped = self.manifest()
        self.second = subprocess.run(self.command, cwd=folder, env=environment, capture_output=True, text=True)
        self.finished = self.manifest()

    def run(self, variant: str) -> Path:
        return self.out / "cartpole" / variant / "seed=3"

    def manifest(self) -> dict[str, Any]:
        content = json.loads((self.out / "manifest.json").read_text())
        runs = {name.split("/")[1]: record for name, record in content.pop("runs").items()}
        return {**content, **runs}

    def tries(self, variant: str) -> int:
        return sum(line.startswith("$ dqs-fit") for line in (self.run(variant) / "log.txt").read_text().splitlines())


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    pytest.importorskip("ray", reason='Ray is not installed: pip install ".[sweep]"')
    return Swept(tmp_path_factory.mktemp("swept"))


def test_a_signal_stops_the_runs_in_order(swept: Swept) -> None:
    assert swept.first.returncode == 75, swept.first_err
    assert {name: swept.stopped[name]["state"] for name in ("short", "wrong", "long")} == {
        "short": "done", "wrong": "failed", "long": "stopped",
    }  # fmt: skip
    assert swept.stopped["long"]["exit_code"] == 75  # by its own will, with a checkpoint
    assert "1 done, 1 stopped, 1 failed" in swept.first_out


def test_the_same_command_skips_and_continues(swept: Swept) -> None:
    assert swept.finished["short"] == swept.stopped["short"] and swept.tries("short") == 1
    long = swept.finished["long"]
    assert long["state"] == "done" and long["exit_code"] == 0 and swept.tries("long") == 2
    assert long["start"] == swept.stopped["long"]["start"] and long["wall_s"] > swept.stopped["long"]["wall_s"]
    rows = [json.loads(line) for line in (swept.run("long") / "scores.jsonl").read_text().splitlines()]
    assert [row["env_frames"] // 400 for row in rows] == [1, 2, 3, 4, 5, 6]
    first, second = json.loads((swept.run("long") / "run.json").read_text())["starts"]
    assert first["command"] == swept.finished["long"]["command"] and set(second) == {"time"}  # the rest is as it was
    assert not (swept.out.parents[2] / "astray").exists()


def test_a_run_that_fails_is_named_and_the_others_go_on(swept: Swept) -> None:
    assert swept.second.returncode == FAILED, swept.second.stderr
    wrong = swept.finished["wrong"]
    assert wrong["state"] == "failed" and wrong["exit_code"] == 2 and swept.tries("wrong") == 2
    assert wrong["note"].startswith("dqs-fit: data.n_steps=0: must be >= 1")
    line = next(line for line in swept.second.stdout.splitlines() if line.startswith("cartpole/wrong/seed=3  failed  "))
    assert line.endswith(wrong["note"]) and "2 done, 1 failed" in swept.second.stdout


def test_the_manifest_says_what_was_run_and_with_what(swept: Swept) -> None:
    said = swept.finished
    assert said["sweep"]["seeds"] == [3] and said["sweep"]["file"] == "s.yaml"
    assert said["environment"]["command"] == ["dqs-sweep", "s.yaml", "--jobs=2"] and said["environment"]["torch"]
    assert said["short"]["command"][-2:] == [f"--run_dir={swept.run('short')}", "--ckpt_path=auto"]
    assert not [path for path in swept.out.glob(".*") if path.name != ".lock"]
