"""Stops a run before a non-finite value reaches the weights or a checkpoint."""

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from tensordict import TensorDictBase
from torch import Tensor
from torch.optim import Optimizer

from dqs_lightning.agents import Agent
from dqs_lightning.finite import ALLOWED, MAX_MAGNITUDE, SOURCES, NonFiniteError, first_refused


class FiniteGuard(Callback):
    """Checks gradients and the agent's `watched` scalars before each optimizer step, and weights before each save.

    Raises `NonFiniteError` on all ranks in the same update, with the weights, the optimizer's state and the last
    checkpoint as they were. The message names the first refused number in the order of the data flow: of the batch,
    the weights, the targets and losses, the gradients. (Collected transitions are checked by `OnlineData` itself,
    before they are stored.) Ranks need no message for it: gradients are means over them, and `Agent.update` makes
    them NaN where one rank's scalars are refused. It synchronises with the device once in each update, and more often
    only when it raises.

    Args:
        enabled: false switches it off.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._batch: TensorDictBase | None = None

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *_: Any) -> None:
        self._batch = batch

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self._batch = None

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        if not self.enabled:
            return
        watched = pl_module.watched if isinstance(pl_module, Agent) else {}
        stepped = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms: Any = torch._foreach_norm([p.grad for p in stepped])
        bad = ~(torch.stack([*norms, *watched.values()]).abs().amax() <= MAX_MAGNITUDE)
        if not bad:
            return
        names = {parameter: f"norm of the gradient of {name}" for name, parameter in pl_module.named_parameters()}
        gradients = zip((names.get(p, "norm of the gradient of a parameter") for p in stepped), norms, strict=True)
        batch = {} if self._batch is None else self._batch
        found = (
            first_refused((f"{name} in the batch", batch[key]) for key, name in SOURCES.items() if key in batch)
            or first_refused(_weights(pl_module))
            or first_refused(watched.items())
        )
        if found is None:
            found = first_refused(gradients)
            if trainer.world_size > 1:
                found = f"{found}, averaged over ranks, of which another one may name the cause"
        raise NonFiniteError(
            f"update {trainer.global_step}: {found}; {ALLOWED}. The weights are those of the update before, and the "
            "last checkpoint is kept"
        )

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self.enabled:
            return
        found = first_refused(_weights(pl_module)) or first_refused(
            (f"{key} of the optimizer", value)
            for state in checkpoint["optimizer_states"]
            for entries in state["state"].values()
            for key, value in entries.items()
            if isinstance(value, Tensor)
        )
        if found:
            raise NonFiniteError(f"update {trainer.global_step}: {found}; not saved, and the last checkpoint is kept")


def _weights(agent: L.LightningModule) -> Iterator[tuple[str, Tensor]]:
    """Parameters, and the statistics of the observations. Other buffers may contain an infinity."""
    yield from agent.named_parameters()
    if isinstance(agent, Agent):
        yield from agent.observation_norm.named_buffers(prefix="observation_norm")
