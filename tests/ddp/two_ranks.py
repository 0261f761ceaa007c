"""Trains on two processes; each then writes its weights. Started by test_two_ranks.py."""

import sys

import torch

from dqs_lightning.cli.training import FitCLI


def main() -> int:
    """The command."""
    cli = FitCLI()
    code = cli.fit()
    torch.save(cli.model.state_dict(), cli.run_dir.path / f"weights-{cli.trainer.global_rank}.pt")
    return code


if __name__ == "__main__":
    sys.exit(main())
