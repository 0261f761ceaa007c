"""Tests of evaluation, diagnostics and the progress bar in short runs."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from faulty import FailsForThree
from helpers import small_agent, small_data, trainer
from lightning.pytorch.loggers import CSVLogger
from scipy import stats

import dqs_lightning.envs.watched
from dqs_callbacks import (
    ActionLandscape,
    Diagnostics,
    Evaluate,
    FramesProgress,
    GoalCoverage,
    Throughput,
    Trajectories,
)
from dqs_callbacks.diagnostics import diagnose
from dqs_callbacks.periodic import Periodic
from dqs_lightning.agents import PPO
from dqs_lightning.diffusion import GuidedDefensive
from dqs_lightning.envs import EnvironmentFailure, Gym, Maze
from dqs_lightning.evaluation.returns import episode_returns, mean_with_interval

COARSE = Gym("Pendulum-v1", action_repeat=50, kwargs={"max_episode_steps": 1_000})


def test_evaluation_writes_scores_and_does_not_change_training(tmp_path: Path) -> None:
    weights = []
    for callbacks in ([], [Evaluate(every_frames=1_600, episodes=3, at_start=True)]):
        L.seed_everything(1)
        data = small_data(environment=COARSE, total_frames=8_000, init_random_frames=1_600)
        agent = small_agent(data)
        fit = trainer(tmp_path, callbacks)
        fit.fit(agent, data)
        weights.append(agent.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [row["env_frames"] for row in rows] == [0, 2_400, 3_200, 4_800, 6_400, 8_000]
    assert rows[-1]["updates"] <= fit.global_step and rows[0]["episodes"] == 3
    low, high = rows[-1]["return_ci95"]
    assert low < rows[-1]["return_mean"] < high
    assert fit.callback_metrics["eval/return"].item() == pytest.approx(rows[-1]["return_mean"], abs=1e-3)


def test_the_untrained_policy_is_evaluated_at_the_start(tmp_path: Path) -> None:
    L.seed_everything(1)
    data = small_data(environment=COARSE, total_frames=1_600, init_random_frames=800)
    agent = small_agent(data)
    seed = (1 + 1_000_003) % 2**31
    torch.manual_seed(seed)
    expected, _ = mean_with_interval(episode_returns(COARSE.make(3, seed), agent.act))
    L.seed_everything(1)
    trainer(tmp_path, [Evaluate(every_frames=1_600, episodes=3, at_start=True)]).fit(agent, data)
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [row["env_frames"] for row in rows] == [0, 1_600] and rows[0]["updates"] == 0
    assert rows[0]["return_mean"] == pytest.approx(expected, abs=1e-3)


def test_a_new_run_deletes_the_rows_of_a_killed_one(tmp_path: Path) -> None:
    (tmp_path / "scores.jsonl").write_text('{"updates": 0, "env_frames": 0}\n{"updates": 7, "env_frames": 900}\n')
    data = small_data(environment=COARSE, total_frames=1_600, init_random_frames=800)
    trainer(tmp_path, [Evaluate(every_frames=1_600, episodes=2)]).fit(small_agent(data), data)
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [row["env_frames"] for row in rows] == [1_600]


def test_each_return_is_that_of_one_whole_episode() -> None:
    env = COARSE.make(4, seed=3)
    actions = torch.rand(40, 4, 1) * 2 - 1
    queue = iter(actions)
    returns = episode_returns(env, lambda observation: next(queue))
    for index in range(4):
        alone = COARSE.make(1, seed=3 + index)
        tensordict, total = alone.reset(), 0.0
        for action in actions[:20]:
            tensordict["action"] = action[index : index + 1]
            stepped, tensordict = alone.step_and_maybe_reset(tensordict)
            total += stepped["next", "reward"].item()
        assert returns[index].item() == pytest.approx(total, rel=1e-5)


def test_episodes_that_do_not_end_are_cut_off_with_a_warning(tmp_path: Path) -> None:
    data = small_data(environment=Maze(step=0.001, horizon=10**9), total_frames=64, init_random_frames=32)
    message = "maze-four-goals: 3 of 3 episodes did not end within 25 steps; they are evaluated by their rewards so far"
    with pytest.warns(UserWarning, match=f"^{message}$"):
        trainer(tmp_path, [Evaluate(64, 3, max_steps=25)]).fit(small_agent(data), data)
    assert json.loads((tmp_path / "scores.jsonl").read_text())["return_mean"] == 0
    with pytest.raises(ValueError, match="max_steps=0: must be >= 1"):
        Evaluate(max_steps=0)


@pytest.mark.parametrize(
    ("make", "call"),
    [
        (Evaluate, "step"),
        (GoalCoverage, "step"),
        (Trajectories, "step"),
        (lambda frames, states: ActionLandscape(frames, states=states), "reset"),
    ],
)
@pytest.mark.parametrize(("fault", "cause"), [("raising", "raised FloatingPoint"), ("sleeping", "did not end within")])
def test_failures_in_the_environments_of_callbacks_are_reported(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[int, int], Periodic],
    call: str,
    fault: str,
    cause: str,
) -> None:
    monkeypatch.setattr(dqs_lightning.envs.watched, "START_LIMIT_S", 0.3)
    environment = FailsForThree(fault, at=1, call=call)
    data = small_data(
        environment=environment, total_frames=64, init_random_frames=32, step_timeout_s=0.3, updates_per_step=0.1
    )
    with pytest.raises(EnvironmentFailure, match=f"^faulty: {call} {cause}"):
        trainer(tmp_path, [make(64, 3)]).fit(small_agent(data), data)


def test_the_confidence_interval_is_students_t() -> None:
    values = torch.tensor([3.0, 5.0, 4.0, 8.0])
    mean, (low, high) = mean_with_interval(values)
    expected = stats.t.interval(0.95, 3, loc=5.0, scale=stats.sem(values.numpy()))
    assert (mean, low, high) == pytest.approx((5.0, *expected), rel=1e-6)
    assert all(math.isnan(bound) for bound in mean_with_interval(values[:1])[1])


def test_an_agent_without_q_is_evaluated_with_single_samples_and_a_warning(tmp_path: Path) -> None:
    data = small_data(environment=COARSE)
    agent = PPO(data.observation_dim, data.action_dim, rollout_steps=16, minibatch_size=16)
    with pytest.warns(UserWarning, match=r"PPO has no Q\(s, a\): evaluations sample it, not best_of=16"):
        trainer(tmp_path, [Evaluate(400, 2, best_of=16)]).fit(agent, data)
    assert (tmp_path / "scores.jsonl").exists()


def test_metrics_include_the_number_of_frames(tmp_path: Path) -> None:
    data = small_data()
    logger = CSVLogger(tmp_path, name="", version="")
    fit = trainer(
        tmp_path,
        [Throughput(), FramesProgress(line_s=0.01)],
        logger=logger,
        log_every_n_steps=25,
        enable_progress_bar=True,
    )
    fit.fit(small_agent(data), data)
    text = (tmp_path / "metrics.csv").read_text().splitlines()
    header = text[0].split(",")
    wanted = {
        "env_frames",
        "time/env_fps",
        "time/updates_per_s",
        "train/critic_loss",
        "train/score_loss",
        "train/ess",
        "train/temperature",
    }
    assert wanted <= set(header)
    frames = [float(line.split(",")[header.index("env_frames")]) for line in text[1:]]
    # 192 updates, a row every 25: the last row is that of update 175, in the block that ends at frame 768.
    assert frames == sorted(frames) and (frames[-1], data.env_frames) == (768, 800)


def test_the_progress_bar_shows_frames_rate_return_and_remaining_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = small_data()
    trainer(tmp_path, [FramesProgress(line_s=0.01)], enable_progress_bar=True).fit(small_agent(data), data)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("800/800 frames") and "updates/s" in line and "return" in line and "left" in line


def test_the_first_line_of_progress_is_printed_when_training_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = small_data()
    trainer(tmp_path, [FramesProgress(line_s=1000)], enable_progress_bar=True).fit(small_agent(data), data)
    assert capsys.readouterr().err.splitlines() == [f"0/800 frames  {data.environment.name}  training starts"]


def test_diagnostics_measure_the_actor_and_do_not_change_training(tmp_path: Path) -> None:
    """The final weights are the same with and without diagnostics; the logged values are finite and in range."""
    ends = []
    for callbacks in ([], [Diagnostics(every_updates=10, states=8)]):
        L.seed_everything(3)
        data = small_data()
        agent = small_agent(data, energy_estimator=GuidedDefensive(4))
        fit = trainer(tmp_path, list(callbacks))
        fit.fit(agent, data)
        ends.append(agent)
    for one, two in zip(ends[0].parameters(), ends[1].parameters(), strict=True):
        assert torch.equal(one, two)
    found = {k.removeprefix("diagnostics/"): v.item() for k, v in fit.callback_metrics.items() if "diagnostics/" in k}
    assert set(found) == {
        "ess_low", "ess_middle", "ess_high", "target_error", "entropy", "at_bounds", "sharpness"
    }  # fmt: skip
    assert all(math.isfinite(value) for value in found.values())
    assert 0 <= found["at_bounds"] <= 1
    assert found["sharpness"] >= 0
    assert found["target_error"] > 0
    assert 1 <= found["ess_low"] <= 32


def test_sharpness_and_entropy_change_with_the_policy() -> None:
    """With equal states, critic and T, a nearly deterministic policy has a far lower sharpness and entropy."""
    torch.manual_seed(0)
    data = small_data()
    agent, observation = small_agent(data), torch.randn(16, data.observation_dim)
    before = diagnose(agent, observation)
    with torch.no_grad():
        last = agent.diffusion.denoiser.rest[-1]
        last.bias[agent.action_dim :] = -8.0  # the outputs for the variance
        agent.diffusion.denoiser.preconditioning.sigma_data = 1e-3
    after = diagnose(agent, observation)
    assert after["sharpness"] < before["sharpness"] / 10
    assert after["entropy"] < before["entropy"] - 1


def test_the_states_used_by_diagnostics_are_saved_in_the_checkpoint() -> None:
    first, second = Diagnostics(), Diagnostics()
    first._observation = torch.randn(4, 3)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second._observation, first._observation)
    with pytest.raises(ValueError, match="every_updates=0"):
        Diagnostics(every_updates=0)


def test_a_policy_is_evaluated_after_the_updates_on_its_frames(tmp_path: Path) -> None:
    """There are 16 updates per block of 32 frames; the first 13 blocks are random."""
    data = small_data()
    trainer(tmp_path, [Evaluate(every_frames=100, episodes=2)]).fit(small_agent(data), data)
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [row["env_frames"] for row in rows] == [448, 512, 608, 704, 800]
    assert [row["updates"] for row in rows] == [16 * (row["env_frames"] // 32 - 13) for row in rows]
