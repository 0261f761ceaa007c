"""Tests of the names that `dqs_lightning` exports, and of runs built in Python against the same runs of `dqs-fit`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dqs_lightning
from dqs_lightning import agents, diffusion, envs
from dqs_lightning.collection.data import OnlineData

ROOT = Path(__file__).parents[1]
TORCH_NAMES = ("torch", "lightning", "torchrl", "tensordict", "numpy", "dm_control", "gymnasium", "mujoco")
QUIET_LIGHTNING = """
import logging
import lightning
for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.WARNING)
"""
"""Silences Lightning's Trainer as `dqs-fit` does."""
BASELINES = """
from dqs_lightning import PPO, SAC, TD3, Gym

for build in (SAC, TD3, lambda *sizes: PPO(*sizes, rollout_steps=32, minibatch_size=32, epochs=1)):
    data = OnlineData(Gym("Pendulum-v1"), total_frames=256, init_random_frames=128, num_envs=2)
    trainer = L.Trainer(max_epochs=1, devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False,
                        enable_progress_bar=False)
    trainer.fit(build(data.observation_dim, data.action_dim), data)
    assert data.finished
"""


def fresh(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a new process without environment variables that silence libraries."""
    hidden = ("MUJOCO_GL", "RL_LOGGING_LEVEL", "RL_WARNINGS", "PYTHONWARNINGS", "DISPLAY")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run(
        [sys.executable, *command],
        env={**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=250,
    )


def test_importing_the_package_imports_no_large_package(tmp_path: Path) -> None:
    code = "import dqs_lightning, json, sys; print(json.dumps([dir(dqs_lightning), sorted(sys.modules)]))"
    done = fresh(tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    names, modules = json.loads(done.stdout)
    assert set(dqs_lightning.__all__) <= set(names)
    assert not {module.partition(".")[0] for module in modules} & set(TORCH_NAMES)


def test_exported_names_are_the_objects_of_their_modules() -> None:
    assert dqs_lightning.OnlineData is OnlineData
    assert dqs_lightning.BoltzmannSampler is diffusion.BoltzmannSampler
    for home, names in ((agents, ("DQS", "SAC", "TD3", "PPO", "load_agent")), (envs, ("DMControl", "Gym"))):
        for name in names:
            assert getattr(dqs_lightning, name) is getattr(home, name)
    assert len(dqs_lightning.__all__) == 9


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'DQN'"):
        dqs_lightning.DQN  # noqa: B018
    with pytest.raises(ImportError):
        exec("from dqs_lightning import DQN")


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def replaced(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def scores(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "wall_s"} for row in rows]


@pytest.mark.slow
def test_python_gives_the_scores_of_the_command_and_both_write_nothing_to_stderr(tmp_path: Path) -> None:
    """Runs README's example, shortened, and its command, on a task for which MuJoCo prints messages.

    The baselines are trained after the example and must print nothing either.
    """
    (example,) = python_blocks("README.md")
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    short = {
        'DMControl("walker", "walk")': 'DMControl("cheetah", "run")',
        "total_frames=250_000": "total_frames=448, init_random_frames=320",
        "every_frames=10_000, episodes=10": "every_frames=400, episodes=2",
        "runs/mine": str(tmp_path / "python"),
    }
    by_python = fresh(tmp_path, "-c", QUIET_LIGHTNING + replaced(example, short) + BASELINES)
    assert by_python.returncode == 0, by_python.stderr
    by_command = fresh(
        tmp_path, "-m", "dqs_lightning.cli.fit", "--config", str(ROOT / "configs" / "cheetah.yaml"),
        "--data.total_frames=448", "--data.init_random_frames=320", "--evaluate.every_frames=400",
        "--evaluate.episodes=2", f"--run_dir={tmp_path / 'command'}", "--trainer.enable_progress_bar=false",
    )  # fmt: skip
    assert by_command.returncode == 0, by_command.stderr
    rows = scores(tmp_path / "python")
    assert rows == scores(tmp_path / "command")
    assert rows[-1]["env_frames"] >= 448 and rows[-1]["updates"] > 0
    assert by_python.stderr == by_command.stderr == ""


@pytest.mark.slow
def test_the_examples_of_the_python_page_run(tmp_path: Path) -> None:
    """Runs all of them in order, shortened; the agent that is loaded is the one trained by the first."""
    checkpoint = '"runs/walker-walk/dqs/20260101-120000/checkpoints/last.ckpt"'
    short = {
        "total_frames=100_000": "total_frames=320, init_random_frames=240",
        checkpoint: 'next(__import__("pathlib").Path().rglob("*.ckpt"))',
        "steps=3000": "steps=3",
    }
    checks = "assert actions.shape == (64, 1, 6) and action.shape == (1, 6) and x.shape == (1000, 2)\n"
    checks += "assert (same.act(torch.zeros(1, 24), True) == agent.act(torch.zeros(1, 24), True)).all()\n"
    done = fresh(tmp_path, "-c", replaced("\n".join(python_blocks("docs/python.md")), short) + checks)
    assert done.returncode == 0, done.stderr
