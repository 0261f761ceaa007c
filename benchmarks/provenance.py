"""Where and with what a figure was measured; written into every JSON file of results."""

import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch


def cpu_model() -> str:
    """As the kernel names it; empty where it does not."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def about() -> dict[str, object]:
    """Command, commit, versions, machine and threads of this process."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit.stdout.strip(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()} {cpu_model()}".strip(),
        "threads": torch.get_num_threads(),
    }
