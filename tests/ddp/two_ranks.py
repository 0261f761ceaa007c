"""Trains on two processes; each then writes its weights. Started by test_two_ranks.py."""

import sys

import torch

from dqs_lightning.cli.training import FitCLI

cli = FitCLI()
code = cli.fit()
torch.save(cli.model.state_dict(), cli.run_dir.path / f"weights-{cli.trainer.global_rank}.pt")
sys.exit(code)
