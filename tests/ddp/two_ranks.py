"""Trains on two processes, each of which then writes its weights. Started by test_two_ranks.py."""

import sys

import torch

from dqs_lightning.cli.training import FitCLI


def main() -> int:
    """Run `dqs-fit`, then write the weights of this rank; returns the exit code."""
    cli = FitCLI()
    code = cli.fit()
    torch.save(cli.model.state_dict(), cli.run_dir.path / f"weights-{cli.trainer.global_rank}.pt")
    return code


if __name__ == "__main__":
    sys.exit(main())
