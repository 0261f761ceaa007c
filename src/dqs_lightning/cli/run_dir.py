"""The run directory: one place that holds everything of a run."""

import csv
import json
import os
import platform
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from dqs_lightning.cli.errors import InputError

VARIABLE = "DQS_RUN_DIR"
"""Processes that Lightning starts for the other ranks inherit the first one's choice."""

ROWS_HELD = 16
"""Rows of metrics.csv that a killed run may lose."""

PACKAGES = ("torch", "lightning", "torchrl", "tensordict", "dm_control", "mujoco", "gymnasium", "jsonargparse", "numpy")


def choose(run_dir: str | None, task: str, agent: str, ckpt_path: str | None) -> tuple[Path, Path | None]:
    """The run's directory and the checkpoint to continue from, if any.

    Without `run_dir` it is runs/<task>/<agent>/<time>. `ckpt_path` is a file, or `auto`: the newest
    checkpoint of `run_dir`, or of runs/<task>/<agent>/; where there is none, a new run.

    Raises:
        InputError: when ckpt_path names no file, or run_dir holds a run that this command would write over.
    """
    family = Path("runs") / task / agent
    if os.environ.get(VARIABLE):
        folder = Path(os.environ[VARIABLE])
    elif run_dir:
        folder = Path(run_dir)
        if ckpt_path is None and (folder / "config.yaml").exists():
            raise InputError(f"--run_dir={run_dir}: holds a run; continue it with --ckpt_path=auto, or name another")
    else:
        folder = family / datetime.now().strftime("%Y%m%d-%H%M%S")
        if ckpt_path == "auto":
            found = sorted(family.glob("*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
            folder = found[-1].parents[1] if found else folder
    os.environ[VARIABLE] = str(folder)
    if ckpt_path == "auto":
        last = folder / "checkpoints" / "last.ckpt"
        return folder, last if last.is_file() else None
    if ckpt_path is None:
        return folder, None
    if not Path(ckpt_path).is_file():
        raise InputError(f"--ckpt_path={ckpt_path}: no such file; allowed is a checkpoint's path or auto")
    return folder, Path(ckpt_path)


class _AppendingWriter(ExperimentWriter):
    """Keeps the rows of the run that it continues, which Lightning's writer deletes."""

    def _check_log_dir_exists(self) -> None:
        if os.path.isfile(self.metrics_file_path):
            with open(self.metrics_file_path, newline="") as file:
                self.metrics_keys = list(csv.DictReader(file).fieldnames or [])


class RunCSVLogger(CSVLogger):
    """`metrics.csv` in the run directory itself, continued when the run is."""

    @property
    def experiment(self) -> _ExperimentWriter:
        if self._experiment is None:
            os.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _AppendingWriter(log_dir=self.log_dir)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        # Lightning writes where step + 1 is a multiple of 100, and updates are logged at even steps: at the end only.
        super().log_metrics(metrics, step)
        if len(self.experiment.metrics) >= ROWS_HELD:
            self.save()


def default_loggers(folder: Path) -> list[Logger]:
    """CSV and TensorBoard, both in the run directory."""
    return [
        RunCSVLogger(save_dir=folder, name="", version=""),
        TensorBoardLogger(save_dir=folder, name="", version="tensorboard"),
    ]


def describe_environment() -> dict[str, Any]:
    """Versions, commit, command and machine, for env.json."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "-"
    try:
        git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
        commit = subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        commit = None
    return {
        "dqs_lightning": version("dqs-lightning"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "versions": versions,
        "commit": commit,
        "command": ["dqs-fit", *sys.argv[1:]],
    }


def write_environment(folder: Path) -> None:
    """Write env.json; a run that continues adds an entry to the list."""
    file = folder / "env.json"
    entries = json.loads(file.read_text()) if file.is_file() else []
    file.write_text(json.dumps([*entries, describe_environment()], indent=2) + "\n")
