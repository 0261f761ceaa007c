"""Tests of runs on two ranks, for which only the number of devices is set.

The processes of one run are new interpreters, those of the others are forks (see `faults.forked`).
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from faults.runs import Launcher

from dqs_lightning.agents import load_agent
from dqs_lightning.checkpoint.archive import safe_load
from dqs_lightning.cli.errors import RANK_LOST

pytestmark = pytest.mark.ddp
CARTPOLE = str(Path(__file__).parents[2] / "configs" / "cartpole.yaml")
SMALL = [
    "--config", CARTPOLE, "--trainer.devices=2", "--trainer.accelerator=cpu", "--data.total_frames=2560",
    "--data.init_random_frames=1280", "--data.batch_size=16",
    "--model.critic_backbone.hidden=[16,16]", "--model.actor_backbone.hidden=[16,16]", "--evaluate.every_frames=1280",
    "--evaluate.episodes=2", "--run_dir=r", "--ckpt_path=auto",
]  # fmt: skip
ARGUMENTS = [
    *SMALL, "--model.energy_estimator.num_samples=4", "--model.sampler.steps=3", "--model.actor_every=3",
    "--model.normalise_observations=true",
]  # fmt: skip
BASELINES = {
    "SAC": ["--model.actor_every=3"],
    "PPO": ["--model.rollout_steps=64", "--model.minibatch_size=16", "--model.epochs=2"],
}
"""TD3 is left out: it shares its code for several ranks with SAC."""


def environment() -> dict[str, str]:
    return {**{k: v for k, v in os.environ.items() if k != "DQS_RUN_DIR"}, "OMP_NUM_THREADS": "1"}


def command() -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("two_ranks.py")), *ARGUMENTS]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run on two ranks."""
    folder = tmp_path_factory.mktemp("whole")
    done = subprocess.run(command(), cwd=folder, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_ranks_have_equal_weights_and_different_actions(whole: Path) -> None:
    weights = [torch.load(whole / "r" / f"weights-{rank}.pt") for rank in range(2)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert weights[0]["observation_norm.batches"] == 320 and weights[0]["observation_norm.mean"].any()
    # A block is 8 steps x 2 frames x 2 ranks = 32 frames. There are 40 random blocks, then 40 with 8 updates each.
    checkpoint = safe_load(whole / "r" / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == 320 and checkpoint["env_frames"] == 2560
    replays = [
        safe_load(whole / "r" / "checkpoints" / f"step=320-frames=2560-rank={rank}.pt")["replay"] for rank in range(2)
    ]
    assert len(replays[0]["action"]) == len(replays[1]["action"]) == 640
    equal = (replays[0]["action"] == replays[1]["action"]).squeeze(-1)
    assert not equal[:320].any()
    assert equal[320:].float().mean() < 0.2  # the policies can be at the same bound
    assert not torch.equal(replays[0]["observation"][0], replays[1]["observation"][0])
    rows = (whole / "r" / "scores.jsonl").read_text().splitlines()
    assert [json.loads(row)["env_frames"] for row in rows] == [1312, 2560]
    assert load_agent(whole / "r" / "checkpoints" / "best.ckpt").env_frames in (1312, 2560)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core cannot be divided")
def test_each_rank_has_its_own_cores(whole: Path) -> None:
    first, second = (set(json.loads((whole / "r" / f"cores-{rank}.json").read_text())) for rank in range(2))
    cores = os.sched_getaffinity(0)
    assert (first & second, first | second) == ((set(), cores) if len(cores) == os.cpu_count() else (cores, cores))


@pytest.mark.parametrize("model", BASELINES)
def test_ranks_of_the_baselines_have_equal_weights_and_normalisation(
    launcher: Launcher, tmp_path: Path, model: str
) -> None:
    arguments = [*SMALL, f"--model={model}", "--model.normalise_observations=true", *BASELINES[model]]
    ended, err = launcher.run(arguments, tmp_path, 240, ranks=2, module="two_ranks")
    assert ended.code == 0, err[-3000:]
    weights = [torch.load(tmp_path / "r" / f"weights-{rank}.pt") for rank in range(2)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert weights[0]["observation_norm.batches"] > 1 and weights[0]["observation_norm.mean"].any()


TASKS = """
data:
  environment:
    class_path: MultiTask
    init_args:
      environments:
        - {class_path: Gym, init_args: {id: Pendulum-v1, kwargs: {max_episode_steps: 40}}}
        - {class_path: Maze}
  num_envs: 2
"""


def test_ranks_on_several_tasks_have_equal_weights_and_all_tasks_in_each_batch(
    launcher: Launcher, tmp_path: Path
) -> None:
    (tmp_path / "tasks.yaml").write_text(TASKS)
    ended, err = launcher.run([*ARGUMENTS, "--config", "tasks.yaml"], tmp_path, 240, ranks=2, module="two_ranks")
    assert ended.code == 0, err[-3000:]
    weights = [torch.load(tmp_path / "r" / f"weights-{rank}.pt") for rank in range(2)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    q_std, variance = weights[0]["temperature_factors.q_std.total"], weights[0]["observation_norm.variance"]
    assert q_std[0] != q_std[1] and not torch.equal(variance[0], variance[1])
    folder = tmp_path / "r" / "checkpoints"
    replays = [safe_load(next(folder.glob(f"*rank={rank}.pt")))["replay"]["observation"] for rank in range(2)]
    assert all(torch.equal(replay[:, -2:].sum(0), torch.full((2,), len(replay) / 2)) for replay in replays)
    assert not torch.equal(*replays)
    rows = [json.loads(row) for row in (tmp_path / "r" / "scores.jsonl").read_text().splitlines()]
    assert rows and all(row["return_by_task"].keys() == {"Pendulum-v1", "maze-four-goals"} for row in rows)


def test_a_rank_that_is_killed_ends_the_other(launcher: Launcher, tmp_path: Path) -> None:
    endless = "--data.total_frames=1_000_000", "--model.compile_losses=false"  # so long a run compiles by default
    started = launcher.start([*ARGUMENTS, *endless], tmp_path, ranks=2, module="two_ranks")
    while not (scores := tmp_path / "r" / "scores.jsonl").exists() or not scores.read_text():
        assert started.poll() is None
        time.sleep(0.05)
    (rank,) = (pid for pid in started.processes() if pid != started.pid)
    os.kill(rank, signal.SIGKILL)
    ended = started.end(60)
    assert ended.code == RANK_LOST and not ended.left, started.err[-3000:]
    assert started.err.count("dqs-fit: another rank has ended (") == 1


def test_a_signal_to_one_rank_stops_both_and_the_run_continues_exactly(
    whole: Path, launcher: Launcher, tmp_path: Path
) -> None:
    started = launcher.start(ARGUMENTS, tmp_path, ranks=2, module="two_ranks")
    # An evaluation has been written, so training has started.
    while not (scores := tmp_path / "r" / "scores.jsonl").exists() or not scores.read_text():
        assert started.poll() is None
        time.sleep(0.05)
    (rank,) = (pid for pid in started.processes() if pid != started.pid)
    os.kill(rank, signal.SIGTERM)
    assert started.end(60).code == 75
    stopped = safe_load(tmp_path / "r" / "checkpoints" / "last.ckpt")
    assert 0 < stopped["global_step"] < 320
    ended, err = launcher.run(ARGUMENTS, tmp_path, 240, ranks=2, module="two_ranks")
    assert ended.code == 0, err[-3000:]
    one, other = (torch.load(path / "r" / "weights-0.pt") for path in (whole, tmp_path))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
