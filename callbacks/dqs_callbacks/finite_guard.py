"""Stops a run before a non-finite value reaches the weights."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer


class NonFiniteError(RuntimeError):
    """A gradient is NaN or infinite; the message names the update and the parameters."""


class FiniteGuard(Callback):
    """Checks every gradient before each optimizer step; raises `NonFiniteError` with the weights still whole."""

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        named = [(name, p.grad) for name, p in pl_module.named_parameters() if p.grad is not None]
        # One number for all gradients: a NaN or an infinity anywhere makes the sum of the norms non-finite.
        norms: Any = torch._foreach_norm([grad for _, grad in named])
        if torch.isfinite(torch.stack(norms).sum()):
            return
        bad = [name for (name, _), norm in zip(named, norms, strict=True) if not torch.isfinite(norm)]
        raise NonFiniteError(
            f"update {trainer.global_step}: non-finite gradient in {', '.join(bad[:4])}"
            f"{f' and {len(bad) - 4} more' if len(bad) > 4 else ''}; the weights are those of the update before"
        )
