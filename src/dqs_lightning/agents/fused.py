"""An update's losses as one compiled program, and with their gradients as one CUDA graph."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import CudaGraphModule
from torch import Tensor

Losses = Callable[[TensorDictBase], tuple[Tensor, dict[str, Tensor]]]
"""The loss of a batch, and metrics: scalars."""


def check_capturable(device: torch.device, world_size: int) -> None:
    """Checks that losses can be captured as a CUDA graph.

    Raises:
        MisconfigurationException: on another device, or on several.
    """
    if device.type != "cuda" or world_size > 1:
        raise MisconfigurationException(
            f"model.cuda_graph=True on {world_size} device(s) of type {device.type}: must be one device of type cuda"
        )


class Compiled:
    """Compiles `losses` with torch.compile at the first call. A copy, here or in another process, compiles again.

    Args:
        losses: without a device-to-host sync.
    """

    def __init__(self, losses: Losses) -> None:
        self.losses = losses
        self._compiled: Losses | None = None

    def __call__(self, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        if self._compiled is None:
            self._compiled = torch.compile(self.losses, dynamic=False, fullgraph=True)
        return self._compiled(batch)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": None}


class Captured:
    """Computes a batch's gradients, which it leaves in the parameters, and returns the metrics of `losses`.

    The graph is captured at the third call; without CUDA there is none. The optimizer's step is not part of it, so that
    hooks before the step, such as FiniteGuard's, see the gradients. A copy captures a graph of its own.

    Args:
        losses: without a device-to-host sync.
        zero_grad: sets all gradients to None.
    """

    def __init__(self, losses: Losses, zero_grad: Callable[[], None]) -> None:
        self.losses, self.zero_grad = losses, zero_grad
        self._graph: CudaGraphModule | None = None

    def __call__(self, batch: TensorDictBase) -> dict[str, Tensor]:
        if self._graph is None:
            with warnings.catch_warnings():  # that there is no CUDA, which `check_capturable` has refused
                warnings.simplefilter("ignore")
                self._graph = CudaGraphModule(self._with_gradients, warmup=3, in_keys=list(batch.keys(True, True)))
        found: TensorDictBase = self._graph(batch.select(*self._graph.in_keys))
        return dict(found.items())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_graph": None}

    def _with_gradients(self, batch: TensorDictBase) -> TensorDict:
        self.zero_grad()  # to None: the capture makes gradients of its own, which each replay writes anew
        loss, metrics = self.losses(batch)
        torch.autograd.backward(loss)
        return TensorDict(metrics, [])
