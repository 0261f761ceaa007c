"""Tests of the counts that `Throughput` logs in addition to the rates."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
from helpers import small_agent, small_data, trainer

from dqs_callbacks import Throughput
from dqs_lightning.envs import DMControl, Environment, Maze
from dqs_lightning.envs.dm_control import DMControlBatch
from dqs_lightning.envs.transforms import ClipTransform


class Diverging(DMControl):
    """Cartpole with two members, of which the second diverges in its 30th and its 60th step."""

    def make(self, num_envs: int, seed: int) -> DMControlBatch:
        batch = super().make(num_envs, seed)
        steps = iter(range(1, 10**6))
        step = batch._envs[-1].step

        def stepped(action: np.ndarray) -> Any:
            if next(steps) in (30, 60):
                batch._envs[-1].physics.data.qvel[:] = np.nan
            return step(action)

        batch._envs[-1].step = stepped
        return batch


def metrics(folder: Path, environment: Environment, **changes: Any) -> dict[str, float]:
    L.seed_everything(1)
    data = small_data(environment=environment, total_frames=640, init_random_frames=320, **changes)
    run = trainer(folder, [Throughput()], log_every_n_steps=1)
    run.fit(small_agent(data), data)
    return {name: float(value) for name, value in run.callback_metrics.items()}


@pytest.mark.filterwarnings("ignore:.*a simulation diverged:RuntimeWarning")
def test_simulations_that_diverge_are_counted_and_do_not_end_the_run(tmp_path: Path) -> None:
    environment = Diverging("cartpole", "swingup", action_repeat=2)
    environment.make(1, seed=0)  # as a run does to find the sizes of observation and action
    logged = metrics(tmp_path, environment)
    assert logged["env/physics_errors"] == environment.physics_errors == 2
    assert "time/env_fps" in logged and logged["time/updates_per_s"] > 0


def test_without_divergence_the_count_is_zero(tmp_path: Path) -> None:
    assert metrics(tmp_path, DMControl("cartpole", "swingup", action_repeat=2))["env/physics_errors"] == 0


@pytest.mark.filterwarnings("ignore:.*a simulation diverged:RuntimeWarning")
def test_simulations_that_diverge_in_workers_are_counted_too(tmp_path: Path) -> None:
    """Each worker has one member, which diverges twice; the observations are transformed."""
    environment = Diverging("cartpole", "swingup", action_repeat=2)
    environment.make(1, seed=0)
    logged = metrics(tmp_path, environment, workers=2, transforms=[ClipTransform(-5.0, 5.0)])
    assert logged["env/physics_errors"] == environment.physics_errors == 4 and logged["time/worker_restarts"] == 0


def test_a_quantity_that_is_not_counted_is_not_logged(tmp_path: Path) -> None:
    assert "env/physics_errors" not in metrics(tmp_path, Maze())
