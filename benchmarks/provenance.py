"""Where and with what a figure was measured; written into every JSON file of results."""

import platform
import shlex
import subprocess
import sys

import torch


def about() -> dict[str, object]:
    """Command, commit, versions, machine and threads of this process."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit.stdout.strip(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
