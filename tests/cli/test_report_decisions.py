"""What a decision costs, in a report: of which checkpoint, and what is refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import small, small_data, trainer

from dqs_lightning.agents import SAC, Agent
from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.report.decisions import BATCH, CHECKPOINT, time_decisions
from dqs_lightning.cli.report.statistics import Cost
from dqs_lightning.cli.report.tables import cost_table
from dqs_lightning.run.checkpoint import RunCheckpoint


def run(folder: Path) -> Any:
    return SimpleNamespace(folder=folder)


def test_the_first_seed_that_has_a_checkpoint_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_data(total_frames=480)
    callbacks = [RunCheckpoint(str((tmp_path / "second" / CHECKPOINT).parent))]
    trainer(tmp_path / "second", callbacks).fit(SAC(data.observation_dim, data.action_dim, **small()), data)
    asked: list[torch.Size] = []
    act = Agent.act

    def counted(self: Agent, observation: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        asked.append(observation.shape)
        return act(self, observation, **kwargs)

    monkeypatch.setattr(Agent, "act", counted)
    members = [run(tmp_path / name) for name in ("first", "second", "third")]
    found = time_decisions({"pole": {"sac": members, "none": [run(tmp_path / "first")]}})
    assert set(found) == {("pole", "sac")} and min(found["pole", "sac"]) > 0
    assert set(asked) == {(1, data.observation_dim), (BATCH, data.observation_dim)}
    costs = [Cost("pole", method, (1.0,), (2.0,)) for method in ("sac", "none")]
    rates: dict[tuple[str, str], list[float]] = {("pole", "sac"): [], ("pole", "none"): []}
    table = cost_table(costs, rates, found)
    assert table.head[-2:] == ("ms a decision", f"ms of {BATCH} at once")
    assert [float(cell) for cell in table.rows[0][-2:]] == pytest.approx(found["pole", "sac"], abs=0.006)
    assert table.rows[1][-2] == table.rows[1][-1] != table.rows[0][-1]
    assert "ms a decision" not in cost_table(costs, rates, {}).head


def test_no_checkpoint_and_a_broken_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--time-actions: none of the runs has"):
        time_decisions({"pole": {"sac": [run(tmp_path)]}})
    (tmp_path / CHECKPOINT).parent.mkdir()
    (tmp_path / CHECKPOINT).write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match=r"--time-actions: .*last\.ckpt"):
        time_decisions({"pole": {"sac": [run(tmp_path)]}})
