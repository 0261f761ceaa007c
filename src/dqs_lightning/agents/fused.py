"""An update's losses as one compiled program, and with their gradients as one CUDA graph."""

import logging
import os
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import CudaGraphModule
from torch import Tensor, nn

log = logging.getLogger(__name__)

CompileLosses = Literal[True, False, "auto"]
"""Whether losses are compiled; "auto": where that saves time."""
Losses = Callable[[TensorDictBase, bool], tuple[Tensor, dict[str, Tensor]]]
"""The loss of a batch, with the actor's or of the critics alone, and metrics: scalars."""


def check_capturable(device: torch.device, world_size: int) -> None:
    """Checks that losses can be captured as a CUDA graph.

    Raises:
        MisconfigurationException: on another device, or on several.
    """
    if device.type != "cuda" or world_size > 1:
        raise MisconfigurationException(
            f"model.cuda_graph=True on {world_size} device(s) of type {device.type}: must be one device of type cuda"
        )


class Compilable:
    """Computes `losses`, compiled by torch.compile where that is asked for or saves time.

    They are compiled at the first call, once with the actor's loss and once without it. A copy, here or in another
    process, compiles again.

    Args:
        losses: without a device-to-host sync.
        compile: whether to compile. "auto": not before `start` has decided; where compiling fails, they are computed
            without it, with a warning.
    """

    UPDATES = 10_000
    """Updates of a run from which "auto" compiles: fewer do not save the time that compiling takes."""

    def __init__(self, losses: Losses, compile: CompileLosses) -> None:
        self.losses, self.compile = losses, compile
        self.compiles = compile is True
        self._compiled: Losses | None = None
        self._called: set[bool] = set()

    def start(self, updates: float) -> None:
        """Decides whether a run of this many updates is compiled, and logs it."""
        if self.compile == "auto":
            self.compiles = updates >= self.UPDATES and cpp_compiler() is not None
        if self.compiles:
            log.info("compiling the losses, which takes about a minute; model.compile_losses=false switches it off")
        elif self.compile == "auto" and updates >= self.UPDATES:
            log.info("the losses are not compiled, so updates are slower: no C++ compiler (CXX, g++, clang++)")

    def __call__(self, batch: TensorDictBase, with_actor: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        if not self.compiles:
            return self.losses(batch, with_actor)
        if self._compiled is None:
            warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`", UserWarning)
            self._compiled = torch.compile(self.losses, dynamic=False, fullgraph=True)
        try:
            computed = self._compiled(batch, with_actor)
        except Exception as error:  # compilers raise errors of any kind; one of the losses themselves is raised below
            if self.compile != "auto" or with_actor in self._called:
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            log.warning("compiling the losses failed, so updates are slower: %s", reason)
            self.compiles = False
            return self.losses(batch, with_actor)
        self._called.add(with_actor)
        return computed

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": None, "_called": set()}


def cpp_compiler() -> str | None:
    """Returns the path of the C++ compiler that torch.compile uses; None where there is none."""
    named = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [named] if named else ["g++", "clang++"])), None)


class Captured:
    """Computes a batch's gradients, which it leaves in the parameters, and returns the metrics of `losses`.

    There is one graph with the actor's loss and one without it. Each is captured at its third call; without CUDA there
    is none. The optimizer's step is not part of it, so that hooks before the step, such as FiniteGuard's, see the
    gradients. A copy captures graphs of its own.

    Args:
        losses: without a device-to-host sync.
        module: whose parameters they depend on.
    """

    def __init__(self, losses: Losses, module: nn.Module) -> None:
        self.losses, self.module = losses, module
        self._graphs: dict[bool, CudaGraphModule] = {}
        self._gradients: dict[bool, list[Tensor | None]] = {}

    def __call__(self, batch: TensorDictBase, with_actor: bool = True) -> dict[str, Tensor]:
        if with_actor not in self._graphs:
            with warnings.catch_warnings():  # that there is no CUDA, which `check_capturable` has refused
                warnings.simplefilter("ignore")
                self._graphs[with_actor] = CudaGraphModule(
                    partial(self._with_gradients, with_actor), warmup=3, in_keys=list(batch.keys(True, True))
                )
        graph = self._graphs[with_actor]
        found: TensorDictBase = graph(batch.select(*graph.in_keys))
        # A replay writes the gradients of its own capture; the parameters may have those of the other graph.
        for parameter, gradient in zip(self.module.parameters(), self._gradients[with_actor], strict=True):
            parameter.grad = gradient
        return dict(found.items())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_graphs": {}, "_gradients": {}}

    def _with_gradients(self, with_actor: bool, batch: TensorDictBase) -> TensorDict:
        self.module.zero_grad()  # to None: the capture makes gradients of its own
        loss, metrics = self.losses(batch, with_actor)
        torch.autograd.backward(loss)
        self._gradients[with_actor] = [parameter.grad for parameter in self.module.parameters()]
        return TensorDict(metrics, [])
