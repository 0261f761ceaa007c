"""What callbacks share that look at the policy now and then, beside the training."""

from abc import ABC, abstractmethod
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng

from dqs_lightning.agents import Agent
from dqs_lightning.data import OnlineData
from dqs_lightning.ranges import at_least


class Periodic(Callback, ABC):
    """Calls `measure` every `every_frames` frames and when the run is finished, on rank zero, after their updates.

    The random state is set aside meanwhile, so that training is the same with and without it; each call has its own
    seed, which depends on the run's seed and the frame alone. Ranks other than zero go on and wait at the next update.

    Args:
        every_frames: environment frames between two calls; >= 1.
    """

    def __init__(self, every_frames: int) -> None:
        at_least("every_frames", every_frames, 1)
        self.every_frames = every_frames
        self._last_frames = 0

    @abstractmethod
    def measure(self, trainer: L.Trainer, agent: Agent, seed: int) -> None:
        """Look at the policy now; torch's generator has been seeded with `seed`."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        data = OnlineData.of(trainer)
        frames = data.env_frames
        if data.pending:  # a policy is judged at N frames when it has learned from them
            return
        if frames // self.every_frames > self._last_frames // self.every_frames:
            self.evaluate(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = OnlineData.of(trainer)
        if data.env_frames >= data.total_frames and self._last_frames < data.env_frames:
            self.evaluate(trainer, pl_module)

    def evaluate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Call `measure` now, where it is called at all."""
        assert isinstance(pl_module, Agent)
        self._last_frames = OnlineData.of(trainer).env_frames
        if not trainer.is_global_zero:
            return
        with isolate_rng():
            seed = (torch.initial_seed() + 1_000_003 + self._last_frames) % 2**31
            torch.manual_seed(seed)
            self.measure(trainer, pl_module, seed)

    def state_dict(self) -> dict[str, Any]:
        return {"last_frames": self._last_frames}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last_frames = state_dict["last_frames"]
