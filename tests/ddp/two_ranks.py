"""Trains on two processes, each of which then writes its weights and its cores. Started by test_two_ranks.py."""

import json
import os
import sys
from typing import Any

import lightning as L
import torch

from dqs_lightning.cli.training import FitCLI


class Cores(L.Callback):
    """Notes on which cores the rank trains."""

    found: set[int]

    def on_train_start(self, *_: Any) -> None:
        self.found = os.sched_getaffinity(0)


def main() -> int:
    """Run `dqs-fit`, then write the weights and the cores of this rank; returns the exit code."""
    cli, cores = FitCLI(), Cores()
    cli.trainer.callbacks.append(cores)
    code = cli.fit()
    torch.save(cli.model.state_dict(), cli.run_dir.path / f"weights-{cli.trainer.global_rank}.pt")
    (cli.run_dir.path / f"cores-{cli.trainer.global_rank}.json").write_text(json.dumps(sorted(cores.found)))
    return code


if __name__ == "__main__":
    sys.exit(main())
