"""An update's losses as one compiled program, and with their gradients as one CUDA graph."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import CudaGraphModule
from torch import Tensor

Losses = Callable[[TensorDictBase], tuple[Tensor, dict[str, Tensor]]]
"""The loss of a batch, and what is recorded of it: scalars."""


class Compiled:
    """`losses` through torch.compile, at the first call. A copy of it, here or in another process, compiles anew.

    Args:
        losses: asks the host for no value.
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
    """Calling it gives what `losses` records of a batch and leaves the gradients of its loss in the parameters.

    The graph is captured at the third call, which without CUDA is a call like any other. The optimizer's step stays
    outside: hooks before it see the gradients, as FiniteGuard must. A copy captures anew.

    Args:
        losses: asks the host for no value.
        zero_grad: sets all gradients to None.
    """

    def __init__(self, losses: Losses, zero_grad: Callable[[], None]) -> None:
        self.losses, self.zero_grad = losses, zero_grad
        self._graph: CudaGraphModule | None = None

    def __call__(self, batch: TensorDictBase) -> dict[str, Tensor]:
        if self._graph is None:
            with warnings.catch_warnings():  # where there is no CUDA it says so; whoever asked for it has refused that
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
