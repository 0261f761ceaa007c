"""The commands as a user runs them: separate processes, small tasks.

Some are new interpreters. The others are forks of a process that has imported the library (see `faults.forked`), which
saves the seconds of the imports.
"""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from faults.runs import Launcher

from dqs_lightning.checkpoint.archive import safe_load

pytestmark = pytest.mark.slow

CARTPOLE = str(Path(__file__).parents[2] / "configs" / "cartpole.yaml")
SMALL = [
    "--config", CARTPOLE, "--data.total_frames=2400", "--data.init_random_frames=800", "--data.batch_size=16",
    "--data.environment.action_repeat=4", "--model.critic_backbone.hidden=[16,16]",
    "--model.actor_backbone.hidden=[16,16]", "--model.energy_estimator.num_samples=4",
    "--model.sampler.steps=3", "--evaluate.every_frames=800", "--evaluate.episodes=2",
]  # fmt: skip
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
ENVIRONMENT.pop("DQS_RUN_DIR", None)


def forked(launcher: Launcher, module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a fork; its output streams are files of the folder."""
    started = launcher.start(arguments, cwd, module=f"dqs_lightning.cli.{module}")
    code = started.end(200).code
    assert code is not None
    return subprocess.CompletedProcess(arguments, code, (cwd / "out").read_text(), started.err)


def command(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"dqs_lightning.cli.{module}", *arguments]


def run(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(module, *arguments), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    done = run("fit", *SMALL, cwd=folder)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()[0]
    assert printed.startswith("runs/cartpole-swingup/dqs/")
    return folder / printed


def test_a_run_directory_holds_configuration_metrics_scores_and_checkpoints(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"config.yaml", "run.json", "metrics.csv", "scores.jsonl", "checkpoints", "tensorboard"} <= names
    rows = [json.loads(line) for line in (finished / "scores.jsonl").read_text().splitlines()]
    assert [row["env_frames"] for row in rows] == [832, 1600, 2400]
    assert set(rows[0]) == {"env_frames", "updates", "wall_s", "episodes", "return_mean", "return_ci95"}


def test_run_json_holds_the_runs_settings_and_the_versions_used(finished: Path) -> None:
    facts = json.loads((finished / "run.json").read_text())
    (start,) = facts.pop("starts")
    settings = facts.pop("settings")
    assert facts == {
        "task": "cartpole-swingup", "method": "dqs", "seed": 0, "action_repeat": 4, "total_frames": 2400,
    }  # fmt: skip
    assert start["torch"] == version("torch") and start["command"][0] == "dqs-fit" and start["commit"]
    assert settings == {key: yaml.safe_load((finished / "config.yaml").read_text())[key] for key in settings}
    assert set(settings) == {"model", "data", "evaluate"}


def test_a_run_from_a_saved_configuration_ends_with_the_same_weights(
    launcher: Launcher, finished: Path, tmp_path: Path
) -> None:
    again = forked(launcher, "fit", "--config", str(finished / "config.yaml"), "--run_dir=again", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    first, second = (safe_load(path / "checkpoints" / "last.ckpt") for path in (finished, tmp_path / "again"))
    assert all(torch.equal(value, second["state_dict"][name]) for name, value in first["state_dict"].items())


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_with_75_and_the_same_command_continues_exactly(
    launcher: Launcher, finished: Path, tmp_path: Path, signal_number: int
) -> None:
    arguments = [*SMALL, "--run_dir=r", "--ckpt_path=auto"]
    started = launcher.start(arguments, tmp_path)
    # An evaluation has been written, so training has started.
    while not (scores := tmp_path / "r" / "scores.jsonl").exists() or not scores.read_text():
        assert started.poll() is None
        time.sleep(0.05)
    os.kill(started.pid, signal_number)
    assert started.end(120).code == 75
    checkpoint = safe_load(tmp_path / "r" / "checkpoints" / "last.ckpt")
    assert 0 < checkpoint["global_step"] < 400
    continued = forked(launcher, "fit", *arguments, cwd=tmp_path)
    assert continued.returncode == 0, continued.stderr
    assert "was finished already" not in continued.stderr
    whole, parts = (safe_load(path / "checkpoints" / "last.ckpt") for path in (finished, tmp_path / "r"))
    assert whole["global_step"] == parts["global_step"]
    assert all(torch.equal(value, parts["state_dict"][name]) for name, value in whole["state_dict"].items())
    for name in ("env_frames", "return_mean"):
        one, other = (
            [json.loads(line)[name] for line in (path / "scores.jsonl").read_text().splitlines()]
            for path in (finished, tmp_path / "r")
        )
        assert one == other
    header, *rows = (tmp_path / "r" / "metrics.csv").read_text().splitlines()
    steps = [int(row.split(",")[header.split(",").index("step")]) for row in rows]
    assert steps == sorted(steps)


def test_a_finished_run_is_not_changed(launcher: Launcher, finished: Path) -> None:
    before = (finished / "checkpoints" / "last.ckpt").read_bytes()
    again = forked(launcher, "fit", *SMALL, f"--run_dir={finished}", "--ckpt_path=auto", cwd=finished)
    assert again.returncode == 0 and "was finished already" in again.stderr
    assert (finished / "checkpoints" / "last.ckpt").read_bytes() == before


def test_a_run_that_diverges_prints_a_message_and_exits_with_3(launcher: Launcher, tmp_path: Path) -> None:
    done = forked(launcher, "fit", *SMALL, "--model.critic_lr=1e30", "--run_dir=r", cwd=tmp_path)
    assert done.returncode == 3
    assert "diverged: update 1: critic.members" in done.stderr and "the last checkpoint is kept" in done.stderr


def test_evaluation_in_a_fresh_process(launcher: Launcher, finished: Path) -> None:
    first, again = (
        start("evaluate", str(finished), "--episodes=3", cwd=finished) for start in (run, partial(forked, launcher))
    )
    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout
    assert first.stdout.startswith("cartpole-swingup  DQS at 2,400 frames  return ")
    assert "95 % interval [" in first.stdout and "3 episodes" in first.stdout
    file, cut = str(finished / "checkpoints" / "last.ckpt"), "--max_steps=20"
    by_file = forked(launcher, "evaluate", file, "--episodes=3", "--random", cut, cwd=finished)
    assert "random policy" in by_file.stdout
    assert "cartpole-swingup: 3 of 3 episodes did not end within 20 steps" in by_file.stderr


def test_a_video_is_written_or_the_reason_is_printed(finished: Path) -> None:
    done = run("evaluate", str(finished), "--episodes=1", "--video", cwd=finished)
    if done.returncode == 2:
        assert "MUJOCO_GL" in done.stderr or "needs EGL or OSMesa" in done.stderr
        return
    video = finished / "videos" / "eval.mp4"
    assert str(video) in done.stdout
    import imageio.v3 as iio

    frames = iio.imread(video)
    assert frames.shape[0] == 250 and frames.shape[-1] == 3
    assert frames.std() > 5 and abs(frames[0].astype(float) - frames[-1]).max() > 20


def test_a_missing_renderer_is_named(finished: Path) -> None:
    arguments = command("evaluate", str(finished), "--episodes=1", "--video")
    environment = {**ENVIRONMENT, "MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "nonsense"}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--video" in done.stderr and len(done.stderr.splitlines()) <= 5


def test_a_missing_run_is_named(launcher: Launcher, tmp_path: Path) -> None:
    done = forked(launcher, "evaluate", "nothing", cwd=tmp_path)
    assert done.returncode == 2 and "nothing: no such" in done.stderr


@pytest.fixture
def third_party(tmp_path: Path) -> dict[str, str]:
    """Two packages on the path, each with a noise schedule; one of them is registered by an entry point."""
    for package in ("registered", "stranger"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(
            "from dqs_lightning.diffusion import Geometric\n\n"
            f"class {package.title()}(Geometric):\n    '''A schedule from elsewhere.'''\n"
        )
    information = tmp_path / "registered-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: registered\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[dqs_lightning.components]\nmine = registered\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [ENVIRONMENT.get("PYTHONPATH")])])
    return {**ENVIRONMENT, "PYTHONPATH": path}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--model.noise_schedule=Registered"], 0),
        (["--model.noise_schedule=stranger.Stranger"], 2),
        (["--model.noise_schedule=stranger.Stranger", "--trust=stranger"], 0),
    ],
)
def test_components_of_other_packages(third_party: dict[str, str], arguments: list[str], code: int) -> None:
    full = command("fit", "--config", CARTPOLE, *arguments, "--print_config")
    done = subprocess.run(full, env=third_party, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    name = arguments[0].rpartition("=")[2].rpartition(".")[2]
    assert (f".{name}" in done.stdout) if code == 0 else ("--trust" in done.stderr)
