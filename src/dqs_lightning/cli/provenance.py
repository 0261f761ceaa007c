"""Where and with what something was computed: command, commit, versions and machine; and the `run.json` of a run."""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dqs_lightning.checkpoint.atomic import atomic_write
from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.files import read_json
from dqs_lightning.sharing.text import printable

FILE = "run.json"
PACKAGES = (
    "dqs-lightning", "torch", "lightning", "torchrl", "tensordict", "dm_control", "mujoco", "gymnasium",
    "jsonargparse", "numpy", "stable-baselines3",
)  # fmt: skip
FACTS: dict[str, Any] = {
    "task": str,
    "method": str,
    "seed": int,
    "action_repeat": int | None,
    "total_frames": int | None,
    "settings": dict,
    "starts": list,
}
"""Keys of `run.json`. settings: of model, data and evaluation. starts: an entry each time the run was started."""
MOST = 2**53
_SEED = re.compile(r"seed=\d+", re.ASCII)
_TIME = re.compile(r"\d{8}-\d{6}(-\d+)?", re.ASCII)


def about(*program: str) -> dict[str, Any]:
    """Describe this process: its command, the commit, versions of packages, and the machine.

    Args:
        program: the first words of the command. Default: python and the script.
    """
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        commit = None
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "command": [*(program or ("python", sys.argv[0])), *sys.argv[1:]],
        "commit": commit,
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "machine": f"{platform.machine()} {_cpu_model()}".strip(),
        "cpus": os.cpu_count(),
        "threads": sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None,
    }


def _cpu_model() -> str:
    """The name that the kernel gives; empty where it gives none."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def method_of(folder: Path, agent: str) -> str:
    """The method of a run: the folder above `seed=K` or above a time, as sweeps and dqs-fit name them; or the agent."""
    named = _SEED.fullmatch(folder.name) or _TIME.fullmatch(folder.name)
    return (folder.parent.name if named else "") or agent


def write_run(folder: Path, program: Sequence[str] = ("dqs-fit",), **facts: Any) -> None:
    """Write `run.json` when a run starts; when it continues, add to `starts` what differs from the earlier ones.

    Args:
        folder: the run directory.
        program: see `about`.
        facts: all other keys of `FACTS`.

    Raises:
        InputError: when the file is there and is not what this function writes.
    """
    starts = read_run(folder)["starts"] if (folder / FILE).is_file() else []
    before = merged(starts)
    changed = {key: value for key, value in about(*program).items() if key not in before or before[key] != value}
    started = {"time": datetime.now(UTC).isoformat(timespec="seconds")}
    content = json.dumps({**facts, "starts": [*starts, started | changed]}, indent=1, default=str)
    atomic_write(f"{content}\n".encode(), folder / FILE)


def read_run(folder: Path) -> dict[str, Any]:
    """Read the facts of a run in `run.json`: the keys of `FACTS`.

    Raises:
        InputError: when there is no such file, or it is not what `write_run` writes.
    """
    file = folder / FILE
    if not os.path.lexists(file):
        raise InputError(f"{folder}: has no {FILE}; only runs that dqs-fit started with this version can be read")
    facts = read_json(file)
    if not isinstance(facts, dict):
        raise InputError(f"{file}: not what dqs-fit writes: must be an object")
    for key, kind in FACTS.items():
        value = facts.get(key)
        whole = isinstance(value, kind) and not isinstance(value, bool) and value != ""
        if not whole or (isinstance(value, int) and not 0 <= value <= MOST):
            raise InputError(f"{file}: not what dqs-fit writes: {key}={printable(value, 60)}")
    if not all(isinstance(start, dict) for start in facts["starts"]):
        raise InputError(f"{file}: not what dqs-fit writes: starts must be a list of objects")
    return {key: facts[key] for key in FACTS}


def merged(starts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what holds of the last of several starts, each of which holds only what changed."""
    return {key: value for start in starts for key, value in start.items()}
