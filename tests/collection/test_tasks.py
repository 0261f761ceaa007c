"""Tests of replay and evaluation on several tasks: equal shares, exact resume, and the return of each task."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import small, trainer
from tensordict import TensorDict

from dqs_callbacks import Evaluate, FiniteGuard
from dqs_lightning.agents import DQS
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.collection.tasks import in_turn
from dqs_lightning.envs import DMControl, Environment, Gym, MultiTask
from dqs_lightning.evaluation.loader import by_task
from dqs_lightning.run.checkpoint import RunCheckpoint


def three() -> list[Environment]:
    return [DMControl("cartpole", "balance"), DMControl("pendulum", "swingup"), DMControl("cartpole", "swingup")]


def make(tasks: list[Environment], **changes: Any) -> tuple[DQS, OnlineData]:
    arguments = {
        "total_frames": 480,
        "init_random_frames": 192,
        "batch_size": 16,
        "num_envs": 6,
        "steps_per_collect": 4,
    }
    data = OnlineData(MultiTask(tasks), **{**arguments, "updates_per_step": 0.25, **changes})
    torch.manual_seed(3)
    return DQS(data.observation_dim, data.action_dim, action_dims=data.action_dims, **small()), data


def shares(observation: torch.Tensor, tasks: int) -> torch.Tensor:
    return observation[..., -tasks:].sum(-2)


@pytest.mark.parametrize("changes", [{}, {"n_steps": 3}, {"replay_size": 100}, {"num_envs": 12, "workers": 2}])
def test_every_batch_has_the_same_share_of_each_task(changes: dict[str, Any], tmp_path: Path) -> None:
    agent, data = make(three(), total_frames=960, **changes)
    found: list[torch.Tensor] = []
    agent.losses = lambda batch, with_actor=True, own=agent.losses: (found.append(batch["observation"]), own(batch))[1]
    agent.fused_losses.losses = agent.losses
    trainer(tmp_path).fit(agent, data)
    each = torch.stack([shares(observation, 3) for observation in found])
    assert len(each) and ((each >= 5) & (each <= 6)).all()
    replay = data.rank_state()["replay"]
    assert len(shares(replay["observation"], 3).unique()) == 1
    ours = replay["observation"][:, -3:].argmax(-1)
    assert torch.equal(ours, torch.arange(len(ours)) % 3)


def test_tasks_that_end_at_different_times_keep_their_shares(tmp_path: Path) -> None:
    tasks = [Gym("Pendulum-v1", kwargs={"max_episode_steps": length}) for length in (3, 10)]
    agent, data = make(tasks, num_envs=2, n_steps=2, total_frames=120, init_random_frames=64)
    trainer(tmp_path).fit(agent, data)
    replay = data.rank_state()["replay"]
    assert torch.equal(replay["observation"][:, -1], torch.arange(len(replay["observation"])) % 2)
    assert replay["next"]["truncated"][::2].float().mean() > 2 * replay["next"]["truncated"][1::2].float().mean()


def test_a_row_keeps_its_transition_when_tasks_take_turns() -> None:
    rows = torch.arange(24).view(4, 6)  # two workers, each with a member of each of two tasks
    assert torch.equal(in_turn(TensorDict({"a": rows}, [4, 6]), 1, 2)["a"], rows.flatten())
    turned = in_turn(TensorDict({"a": rows}, [4, 6]), 2, 2)["a"]
    assert torch.equal(turned[::2], rows[::2].flatten()) and torch.equal(turned[1::2], rows[1::2].flatten())


def test_a_resumed_run_is_bitwise_identical(tmp_path: Path) -> None:
    weights = []
    for folder, steps in (("whole", (-1,)), ("cut", (31, -1))):
        for max_steps in steps:
            agent, data = make(three(), n_steps=2)
            checkpoints = tmp_path / folder / "checkpoints"
            last = checkpoints / "last.ckpt"
            fit = trainer(tmp_path / folder, [FiniteGuard(), RunCheckpoint(str(checkpoints))], max_steps=max_steps)
            fit.fit(agent, data, ckpt_path=last if last.exists() else None, weights_only=True)
        weights.append(agent.state_dict())
    assert fit.global_step == 36
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_scores_have_the_return_of_each_task_and_their_mean(tmp_path: Path) -> None:
    agent, data = make([Gym("Pendulum-v1", kwargs={"max_episode_steps": length}) for length in (3, 10)], num_envs=2)
    evaluate = Evaluate(every_frames=480, episodes=2, path=str(tmp_path / "scores.jsonl"))
    fit = trainer(tmp_path, [evaluate])
    fit.fit(agent, data)
    row = json.loads((tmp_path / "scores.jsonl").read_text().splitlines()[-1])
    each = row["return_by_task"]
    assert list(each) == ["Pendulum-v1", "Pendulum-v1-2"] and row["episodes"] == 2
    assert row["return_mean"] == pytest.approx(sum(each.values()) / 2, abs=1e-3)
    assert each["Pendulum-v1-2"] < 2 * each["Pendulum-v1"] < 0  # more than twice the steps
    metrics = {name: float(value) for name, value in fit.callback_metrics.items()}
    assert metrics["eval/return/Pendulum-v1-2"] == pytest.approx(each["Pendulum-v1-2"], abs=1e-3)
    (found,) = fit.validate(agent, data, verbose=False)
    assert found["eval/return"] == pytest.approx(
        (found["eval/return/Pendulum-v1"] + found["eval/return/Pendulum-v1-2"]) / 2
    )


def test_the_interval_is_that_of_the_mean_over_tasks() -> None:
    found = by_task(torch.tensor([1.0, 2.0, 101.0, 104.0]), ["a", "b"])
    assert {name: value.tolist() for name, value in found.items()} == {
        "return": [51, 53], "return/a": [1, 2], "return/b": [101, 104],
    }  # fmt: skip
    assert by_task(torch.ones(3), ["a"]).keys() == {"return"}
