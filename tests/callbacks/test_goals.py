"""Tests of counting goals and drawing trajectories, in short runs."""

import json
from itertools import pairwise
from pathlib import Path

import lightning as L
import pytest
import torch
from helpers import small_agent, small_data, trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from matplotlib.image import imread

from dqs_callbacks import GoalCoverage, Trajectories
from dqs_callbacks.goals import table, thinned
from dqs_lightning.envs import Gym, Maze, MixtureNavigation
from dqs_lightning.evaluation.goal_coverage import entropy_of
from dqs_lightning.run.checkpoint import RunCheckpoint

OPEN = Maze(walls=[], goals=[[0.5, 0.5], [-0.5, -0.5]], goal_radius=0.4, horizon=10)
"""A maze in which even an untrained policy reaches goals."""


def test_goals_are_counted_and_drawn_and_training_does_not_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = []
    for callbacks in ([], [GoalCoverage(every_frames=200, rollouts=30), Trajectories(every_frames=200, rollouts=9)]):
        L.seed_everything(1)
        data = small_data(environment=OPEN, total_frames=600, init_random_frames=300)
        agent = small_agent(data)
        fit = trainer(tmp_path, callbacks, logger=TensorBoardLogger(tmp_path))
        fit.fit(agent, data)
        weights.append(agent.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    rows = [json.loads(line) for line in (tmp_path / "goals.jsonl").read_text().splitlines()]
    assert [row["env_frames"] for row in rows] == [320, 400, 608]
    last = rows[-1]
    assert last["rollouts"] == 30 and len(last["shares"]) == 2 and 0 < last["success"] <= 1
    assert last["goals"] == sum(share > 0 for share in last["shares"]) and "mmd" not in last
    assert last["success"] == pytest.approx(sum(last["shares"]), abs=1e-3)
    assert last["goal_entropy"] == pytest.approx(entropy_of(torch.tensor(last["shares"])), abs=1e-3)
    assert fit.callback_metrics["eval/success"].item() == pytest.approx(last["success"], abs=1e-4)
    assert f"{last['success']:.0%}" in capsys.readouterr().out
    picture = imread(tmp_path / "pictures" / "trajectories.png")
    assert picture.shape[1] > 2 * picture.shape[0] and picture[..., :3].std() > 0.05
    assert any(tmp_path.rglob("events.out.tfevents*"))


def test_a_run_that_continues_keeps_its_rows_and_panels(tmp_path: Path) -> None:
    def callbacks() -> list[L.Callback]:
        return [
            GoalCoverage(every_frames=200, rollouts=5),
            Trajectories(every_frames=200, rollouts=5, panels=9),
            RunCheckpoint(str(tmp_path / "checkpoints")),
        ]

    whole = callbacks()
    data = small_data(environment=OPEN, total_frames=800)
    fit = trainer(tmp_path, whole, max_steps=150)
    fit.fit(small_agent(data), data)
    again = callbacks()
    data = small_data(environment=OPEN, total_frames=800)
    trainer(tmp_path, again).fit(
        small_agent(data), data, ckpt_path=tmp_path / "checkpoints" / "last.ckpt", weights_only=True
    )
    rows = [json.loads(line) for line in (tmp_path / "goals.jsonl").read_text().splitlines()]
    assert [row["env_frames"] for row in rows] == [416, 608, 800]
    drawn = again[1]
    assert isinstance(drawn, Trajectories) and [panel[0] for panel in drawn._kept] == [416, 608, 800]


def test_an_environment_without_goals_is_refused_before_training(tmp_path: Path) -> None:
    for callback in (GoalCoverage(), Trajectories()):
        data = small_data(environment=Gym("Pendulum-v1"))
        with pytest.raises(MisconfigurationException, match=r"Maze.*not data.environment=Gym"):
            trainer(tmp_path, [callback]).fit(small_agent(data), data)
        assert data.env_frames == 0


def test_end_positions_are_compared_with_a_known_distribution(tmp_path: Path) -> None:
    mixture = MixtureNavigation(num_modes=2, step=5.0, horizon=5)
    data = small_data(environment=mixture, total_frames=400, init_random_frames=200)
    trainer(tmp_path, [GoalCoverage(every_frames=1000, rollouts=40)]).fit(small_agent(data), data)
    (row,) = [json.loads(line) for line in (tmp_path / "goals.jsonl").read_text().splitlines()]
    assert 0.1 < row["mmd"] < 6 and len(row["shares"]) == 2


def test_panels_are_selected_evenly_and_include_first_and_last() -> None:
    nothing = torch.zeros(0)
    kept = []
    for frames in range(1, 41):
        kept = thinned([*kept, (frames, nothing, nothing)], 4)
    frames = [panel[0] for panel in kept]
    assert (frames[0], frames[-1], len(frames)) == (1, 40, 4)
    assert max(b - a for a, b in pairwise(frames)) <= 26


def test_the_table_shows_every_goal_of_a_maze() -> None:
    row = {
        "env_frames": 5,
        "rollouts": 4,
        "success": 0.5,
        "goal_entropy": 0.0,
        "goals": 1,
        "paths": 1,
        "shares": [0.5, 0.0],
    }
    assert table(row, OPEN).row_count == 5


@pytest.mark.parametrize("make", [GoalCoverage, Trajectories])
def test_numbers_out_of_range_are_refused(make: type) -> None:
    for changes in ({"every_frames": 0}, {"rollouts": 0}):
        with pytest.raises(ValueError, match="must be >= 1"):
            make(**changes)
