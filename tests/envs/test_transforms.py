"""TorchRL transforms: the agent receives transformed observations; reported returns are those of the environment."""

import sys
from pathlib import Path
from typing import Any

import gymnasium
import lightning as L
import pytest
import torch
from helpers import cartpole, saved_run, small, small_agent, small_data, trainer
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs import transforms
from torchrl.envs.utils import check_env_specs

from dqs_callbacks import Evaluate
from dqs_lightning.checkpoint.archive import safe_load
from dqs_lightning.cli import evaluate, fit
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.envs import DMControl, Environment, Gym, Maze, Transform
from dqs_lightning.envs.restarts import Restarts
from dqs_lightning.envs.transformed import TransformError, transformed
from dqs_lightning.envs.transforms import (
    BinarizeReward,
    CatFrames,
    ClipTransform,
    ObservationNorm,
    RewardClipping,
    RewardScaling,
    SignTransform,
    TimeMaxPool,
    transform_rewards,
)
from dqs_lightning.envs.watched import Watched
from dqs_lightning.envs.workers import WorkerBatch
from dqs_lightning.evaluation.returns import episode_returns
from dqs_lightning.registry import describe
from dqs_lightning.run.checkpoint import RunCheckpoint

SHORT = Maze(horizon=9)


def rollout(environment: Environment, steps: int = 23) -> TensorDict:
    env = environment.make(3, seed=0)
    torch.manual_seed(0)
    return env.rollout(steps, break_when_any_done=False)


def stacked(plain: TensorDict, number: int) -> tuple[Tensor, Tensor]:
    """Computes stacks of the latest observations before and after each step of a rollout [E, T], oldest first."""
    before, after = [], []
    for observation, following, done in zip(
        plain["observation"], plain["next", "observation"], plain["next", "done"].squeeze(-1), strict=True
    ):
        history: list[Tensor] = []
        for now, then, ends in zip(observation, following, done, strict=True):
            history = history or [now] * number
            before.append(torch.cat(history))
            history = [*history[1:], then]
            after.append(torch.cat(history))
            if ends:
                history = []
    shape = (*plain.batch_size, -1)
    return torch.stack(before).reshape(shape), torch.stack(after).reshape(shape)


@pytest.mark.parametrize("environment", [SHORT, cartpole(action_repeat=100)])
def test_frames_are_stacked_within_episodes(environment: Environment) -> None:
    plain, changed = rollout(environment), rollout(transformed(environment, [CatFrames(3)]))
    assert 0 < plain["next", "done"].sum() < plain["next", "done"].numel()
    before, after = stacked(plain, 3)
    assert torch.equal(changed["observation"], before)
    assert torch.equal(changed["next", "observation"], after)
    assert torch.equal(changed["next", "reward"], plain["next", "reward"])


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (ObservationNorm([1.0, -2.0], [3.0, 0.5]), lambda x: x * torch.tensor([3.0, 0.5]) + torch.tensor([1.0, -2.0])),
        (ObservationNorm(0.5, 2.0, standard_normal=True), lambda x: (x - 0.5) / 2),
        (ClipTransform(-0.1, 0.2), lambda x: x.clamp(-0.1, 0.2)),
        (ClipTransform(high=0.2), lambda x: x.clamp(max=0.2)),
        (SignTransform(["observation"]), torch.sign),
        (TimeMaxPool(1), lambda x: x),
    ],
)
def test_observation_transforms_change_only_observations(transform: Transform, expected: Any) -> None:
    plain, changed = rollout(SHORT), rollout(transformed(SHORT, [transform]))
    for key in ("observation", ("next", "observation")):
        torch.testing.assert_close(changed[key], expected(plain[key]))
    for key in ("action", "position", ("next", "reward"), ("next", "terminated"), ("next", "truncated")):
        assert torch.equal(changed[key], plain[key]), key


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (RewardScaling(1.0, 0.1), [-0.2, 1.0, 1.3]),
        (RewardScaling(1.0, 2.0, standard_normal=True), [-6.5, -0.5, 1.0]),
        (RewardClipping(-1.0, 2.0), [-1.0, 0.0, 2.0]),
        (ClipTransform(low=0.5, in_keys=["reward"]), [0.5, 0.5, 3.0]),
        (SignTransform(), [-1.0, 0.0, 1.0]),
        (BinarizeReward(), [0.0, 0.0, 1.0]),
        (CatFrames(2), [-12.0, 0.0, 3.0]),
    ],
)
def test_reward_transforms_change_only_rewards(transform: Transform, expected: list[float]) -> None:
    rewards, observation = torch.tensor([[-12.0], [0.0], [3.0]]), torch.ones(3, 2)
    block = TensorDict({"observation": observation, "next": {"observation": observation, "reward": rewards}}, [3])
    changed = transform_rewards([transform], block)
    torch.testing.assert_close(changed["next", "reward"].squeeze(-1), torch.tensor(expected))
    assert torch.equal(block["next", "reward"], rewards)
    assert torch.equal(changed["observation"], observation) and torch.equal(changed["next", "observation"], observation)


def test_transformed_environments_meet_the_contract() -> None:
    chain = [CatFrames(3), ObservationNorm(scale=2.0), ClipTransform(-1, 1), TimeMaxPool(2)]
    check_env_specs(transformed(SHORT, chain).make(3, seed=0))


@pytest.mark.parametrize("chain", [[CatFrames(3), ClipTransform(-0.5, 0.5)], [TimeMaxPool(3), CatFrames(2)]])
def test_a_snapshot_includes_the_stacked_earlier_observations(chain: list[Transform]) -> None:
    def made() -> Watched:
        return Watched(lambda: transformed(SHORT, chain).make(3, seed=0), "maze")

    env = made()
    torch.manual_seed(0)
    last = env.maybe_reset(env.step_mdp(env.rollout(8, break_when_any_done=False)[:, -1]))
    state = env.snapshot()
    other = made()
    other.restore(state)
    first = other.reset()
    assert torch.equal(first["observation"], last["observation"])
    results = []
    for one, start in ((env, last), (other, first)):
        torch.manual_seed(1)
        results.append(one.rollout(12, auto_reset=False, tensordict=start.copy(), break_when_any_done=False))
    for key in ("observation", ("next", "observation"), ("next", "reward"), ("next", "done")):
        assert torch.equal(results[0][key], results[1][key]), key


def test_workers_give_the_same_observations_as_one_process() -> None:
    environment = transformed(SHORT, [CatFrames(3), ClipTransform(-0.5, 0.5)])
    env = WorkerBatch(environment, 4, 2, 0, 10.0, Restarts())
    try:
        torch.manual_seed(0)
        found = env.rollout(20, break_when_any_done=False)
    finally:
        env.close()
    torch.manual_seed(0)
    expected = environment.make(4, seed=0).rollout(20, break_when_any_done=False)
    for key in ("observation", ("next", "observation"), ("next", "reward"), ("next", "done")):
        assert torch.equal(found[key], expected[key]), key


CHAIN = [CatFrames(3), RewardScaling(2.0, 0.1), ClipTransform(-0.5, 0.5), ClipTransform(-1, 1, ["reward"])]


def fitted(folder: Path, workers: int, *stops: int, environment: Environment | None = None) -> tuple[OnlineData, Any]:
    """Trains a run, stopped and continued at each of `stops`; returns the data and the agent at its end."""
    environment = environment or DMControl("cartpole", "swingup", action_repeat=20)
    for index, updates in enumerate(stops):
        L.seed_everything(3)
        frames = 320 * environment.action_repeat
        data = small_data(
            environment=environment, transforms=CHAIN, workers=workers, updates_per_step=0.5,
            total_frames=frames, init_random_frames=frames // 2,
        )  # fmt: skip
        agent = small_agent(data, **small())
        run = trainer(folder, [RunCheckpoint(str(folder))], max_steps=updates)
        run.fit(agent, data, ckpt_path=folder / "last.ckpt" if index else None, weights_only=True)
    return data, agent


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_continues_bitwise_with_the_transforms_states(tmp_path: Path, workers: int) -> None:
    data, agent = fitted(tmp_path / "whole", 0, -1)
    parts, continued = fitted(tmp_path / "parts", workers, 37, -1)
    replay, other = (
        TensorDict.from_dict(d.rank_state()["replay"], auto_batch_size=True, batch_dims=1) for d in (data, parts)
    )
    assert replay["observation"].shape == (320, 15) and data.observation_dim == agent.observation_dim == 15
    assert (replay == other).all()
    for name, value in agent.state_dict().items():
        assert torch.equal(value, continued.state_dict()[name]), name


def test_a_run_whose_environments_cannot_be_restored_begins_new_episodes(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="their episodes start anew"):
        data, _ = fitted(tmp_path, 0, 37, -1, environment=Gym("Pendulum-v1"))
    assert data.rank_state()["replay"]["observation"].shape == (320, 9)


class _Paying(gymnasium.Env):
    """Gives reward 5 in each of 10 steps."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), 5.0, False, self.steps == 10, {}


@pytest.fixture
def paying() -> Gym:
    gymnasium.register("TransformsPay-v0", _Paying)
    yield Gym("TransformsPay-v0")
    del gymnasium.registry["TransformsPay-v0"]


def test_the_agent_learns_from_transformed_rewards_and_returns_are_the_environments(
    tmp_path: Path, paying: Gym
) -> None:
    data = small_data(environment=paying, transforms=[RewardScaling(1.0, 0.1)], n_steps=2)
    scores = Evaluate(every_frames=400, episodes=2, path=str(tmp_path / "scores.jsonl"))
    run = trainer(tmp_path, [scores])
    agent = small_agent(data, **small())
    run.fit(agent, data)
    rewards = data.rank_state()["replay"]["next"]["reward"]
    assert torch.isclose(rewards.max(), torch.tensor(1.5 * (1 + agent.discount)))
    assert data.train_return == 50 and run.callback_metrics["eval/return"] == 50
    env = data.make_environment(3, seed=0)
    assert episode_returns(env, None).tolist() == [50, 50, 50]


def test_transforms_are_saved_as_plain_values_and_rebuilt(tmp_path: Path) -> None:
    fitted(tmp_path, 0, -1)
    saved = safe_load(tmp_path / "last.ckpt")[OnlineData.CHECKPOINT_HYPER_PARAMS_KEY]["transforms"]
    assert saved == describe(CHAIN)
    assert saved[0]["class_path"] == "dqs_lightning.envs.transforms.CatFrames" and saved[0]["init_args"]["N"] == 3
    data = OnlineData.load_from_checkpoint(tmp_path / "last.ckpt")
    assert describe(data.transforms) == saved
    assert data.make_environment(2, seed=0).reset()["observation"].shape == (2, 15)


def test_dqs_eval_applies_transforms_and_prints_the_environments_return(
    tmp_path: Path, paying: Gym, capsys: pytest.CaptureFixture[str]
) -> None:
    run = saved_run(tmp_path, environment=paying, transforms=[CatFrames(2), RewardScaling(1.0, 0.1)])
    assert evaluate.main([str(run), "--episodes=2"]) == 0
    assert "return 50.0 " in capsys.readouterr().out


def test_rendered_pictures_are_not_transformed() -> None:
    env = transformed(SHORT, [CatFrames(2)]).make(1, seed=0)
    with pytest.raises(TypeError, match="MazeBatch has no method render"):
        env.render()
    base = env._inner.base_env
    type(base).render = lambda self, index, height, width: (index, height, width)
    try:
        assert env.render(0, 16, 32) == (0, 16, 32)
    finally:
        del type(base).render


class _Deeper(Transform):
    def make(self, in_keys):
        return transforms.UnsqueezeTransform(-1, in_keys=in_keys)


class _Second(Transform):
    def make(self, in_keys):
        return transforms.SignTransform(in_keys, ["second"])


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ([ObservationNorm([1.0, 2.0, 3.0])], r"transforms.0=ObservationNorm: cannot be applied to observations of 2 "),
        ([CatFrames(2), ObservationNorm(scale=[1.0] * 2)], r"transforms.1=ObservationNorm: .* of 4 numbers"),
        ([ClipTransform()], r"transforms.0=ClipTransform: .*must be provided"),
        ([_Deeper()], r"transforms.0=_Deeper: .*must be float32 of"),
        ([_Second()], r"transforms.0=_Second: .*it changes second; must change observations alone"),
    ],
)
def test_transforms_that_do_not_fit_the_environment_are_refused(chain: list[Transform], message: str) -> None:
    with pytest.raises(TransformError, match=message):
        _ = small_data(environment=SHORT, transforms=chain).observation_dim


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("[{class_path: CatFrames, init_args: {in_keys: [pixels]}}]", "data.transforms.0.in_keys=['pixels']: must be"),
        ("[{class_path: RewardScaling, init_args: {in_keys: [action]}}]", "data.transforms.0.in_keys=['action']: must"),
        ("[{class_path: CatFrames, init_args: {N: 0}}]", "data.transforms.0.N=0: must be >= 1"),
        ("[{class_path: ToTensorImage}]", "data.transforms.0=ToTensorImage: no such component; must be one of"),
        ("[{class_path: torchrl.envs.ActionMask}]", "data.transforms=torchrl.envs.ActionMask: no such component"),
        ("[{class_path: ObservationNorm, init_args: {loc: [1, 2, 3]}}]", "data.transforms.0=ObservationNorm: cannot"),
    ],
)
def test_invalid_transforms_are_refused_in_one_line_and_nothing_is_written(
    given: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--data.environment=Maze", f"--data.transforms={given}", "--run_dir=run"]
    monkeypatch.setattr(sys, "argv", ["dqs-fit", *arguments])
    assert fit.main() == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"dqs-fit: {message}") and len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
