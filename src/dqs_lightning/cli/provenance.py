"""Versions, commit, command and machine of a run, in its env.json."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dqs_lightning.checkpoint.atomic import atomic_write

PACKAGES = ("torch", "lightning", "torchrl", "tensordict", "dm_control", "mujoco", "gymnasium", "jsonargparse", "numpy")


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
    atomic_write((json.dumps([*entries, describe_environment()], indent=2) + "\n").encode(), file)
