"""Stops a run before a non-finite value reaches the weights."""

import math
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
        # Those that this step would take into the weights. Names are looked up only when there is one to tell.
        stepped = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # One number for all gradients: a NaN or an infinity anywhere makes the sum of the norms non-finite.
        norms: Any = torch._foreach_norm([p.grad for p in stepped])
        if math.isfinite(torch.stack(norms).sum().item()):
            return
        names = {parameter: name for name, parameter in pl_module.named_parameters()}
        bad = [names.get(p, "a parameter") for p, norm in zip(stepped, norms, strict=True) if not torch.isfinite(norm)]
        raise NonFiniteError(
            f"update {trainer.global_step}: non-finite gradient in {', '.join(bad[:4])}"
            f"{f' and {len(bad) - 4} more' if len(bad) > 4 else ''}; the weights are those of the update before"
        )
