"""Trains on two processes, of which one has a fault. Started by test_faults.py with a folder and the kind of fault.

`reward`: the second receives an infinite reward. `evaluation`: the environments of the first one's evaluation fail.
"""

import math
import os
import sys
from pathlib import Path
from typing import Any

import lightning as L

sys.path.insert(0, str(Path(__file__).parents[1]))

from faulty import FailsForThree
from helpers import small, small_data, trainer

from dqs_callbacks import Evaluate, FiniteGuard, NonFiniteError
from dqs_lightning.agents import DQS
from dqs_lightning.envs import EnvironmentFailure, Maze
from dqs_lightning.run.checkpoint import RunCheckpoint


class Fault(L.Callback):
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 3 and trainer.global_rank == 1:
            batch["next", "reward"][1, 0] = math.inf


folder, fault = Path(sys.argv[1]), sys.argv[2]
environment = Maze() if fault == "reward" else FailsForThree("raising", at=2)
data = small_data(environment=environment, steps_per_collect=4, batch_size=4, total_frames=64, init_random_frames=16)
agent = DQS(data.observation_dim, data.action_dim, **small((4, 4)))
callbacks: list[L.Callback] = [FiniteGuard(), RunCheckpoint(str(folder), every_n_updates=2)]
callbacks[:0] = [Fault()] if fault == "reward" else [Evaluate(32, 3, path=str(folder / "scores.jsonl"))]
try:
    trainer(folder, callbacks, devices=2, strategy="ddp").fit(agent, data)
except (NonFiniteError, EnvironmentFailure) as error:
    (folder / f"rank-{os.environ.get('LOCAL_RANK', 0)}.txt").write_text(str(error))
    sys.exit(3)
