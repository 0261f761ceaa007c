"""Trains on two processes; the second receives an infinite reward. Started by test_non_finite.py."""

import math
import os
import sys
from pathlib import Path
from typing import Any

import lightning as L

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers import small, small_data, trainer

from dqs_callbacks import FiniteGuard, NonFiniteError
from dqs_lightning.agents import DQS
from dqs_lightning.envs import Maze
from dqs_lightning.run.checkpoint import RunCheckpoint


class Fault(L.Callback):
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 3 and trainer.global_rank == 1:
            batch["next", "reward"][1, 0] = math.inf


folder = Path(sys.argv[1])
data = small_data(environment=Maze(), steps_per_collect=4, batch_size=4, total_frames=64, init_random_frames=16)
agent = DQS(data.observation_dim, data.action_dim, **small((4, 4)))
callbacks = [Fault(), FiniteGuard(), RunCheckpoint(str(folder), every_n_updates=2)]
try:
    trainer(folder, callbacks, devices=2, strategy="ddp").fit(agent, data)
except NonFiniteError as error:
    (folder / f"rank-{os.environ.get('LOCAL_RANK', 0)}.txt").write_text(str(error))
    sys.exit(3)
