"""Times of an action in a report: which checkpoint is timed, and which input is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import small, small_data, trainer

from dqs_lightning.agents import SAC, Agent
from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.report.command import parse
from dqs_lightning.cli.report.files import Run
from dqs_lightning.cli.report.measure import BATCH, CHECKPOINT, measure, time_decisions
from dqs_lightning.cli.report.tables import tables_of
from dqs_lightning.run.checkpoint import RunCheckpoint

ROWS = [[1000.0, 0.0, 1.0, 10.0, 5.0], [2000.0, 500.0, 2.0, 10.0, 6.0]]


def run(folder: Path, method: str = "sac", seed: int = 0) -> Run:
    return Run("r", "pole", method, seed, ROWS, folder=folder)


def test_the_first_seed_that_has_a_checkpoint_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_data(total_frames=480)
    callbacks = [RunCheckpoint(str((tmp_path / "second" / CHECKPOINT).parent))]
    trainer(tmp_path / "second", callbacks).fit(SAC(data.observation_dim, data.action_dim, **small()), data)
    shapes: list[torch.Size] = []
    act = Agent.act

    def counted(self: Agent, observation: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        shapes.append(observation.shape)
        return act(self, observation, **kwargs)

    monkeypatch.setattr(Agent, "act", counted)
    runs = [run(tmp_path / name, seed=seed) for seed, name in enumerate(("first", "second", "third"))]
    runs.append(run(tmp_path / "first", "none"))
    found = time_decisions(runs)
    assert set(found) == {("pole", "sac")} and min(found["pole", "sac"]) > 0
    assert set(shapes) == {(1, data.observation_dim), (BATCH, data.observation_dim)}
    tables = []
    for options in ([], ["--time-actions"]):
        made = measure(runs, parse([str(tmp_path), "--out=out", "--published=none", *options]))
        tables.append((made.decisions, next(table.cells for table in tables_of(made) if table.title == "Cost")))
    (_, without), (times, timed) = tables
    assert "ms a decision" not in without and list(timed)[-2:] == ["ms a decision", f"ms of {BATCH} at once"]
    shown = [float(cell) for cell in timed.iloc[0, -2:]]
    assert shown == pytest.approx(times["pole", "sac"], abs=0.006) and list(timed.iloc[1, -2:]) == ["-", "-"]


def test_missing_and_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--time-actions: none of the runs has"):
        time_decisions([run(tmp_path)])
    (tmp_path / CHECKPOINT).parent.mkdir()
    (tmp_path / CHECKPOINT).write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match=r"--time-actions: .*last\.ckpt"):
        time_decisions([run(tmp_path)])
