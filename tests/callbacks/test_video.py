"""Tests of videos: their content, where they are written, and which requests are refused."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import lightning as L
import numpy as np
import pytest
import torch
from helpers import small_agent, small_data, trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase
from torchrl.envs.utils import check_env_specs

from dqs_callbacks import CannotFilmError, Video
from dqs_callbacks.video import film
from dqs_lightning.envs import DMControl, Environment, Maze
from dqs_lightning.evaluation.returns import episode_returns
from dqs_lightning.run.checkpoint import RunCheckpoint

STEPS = 10
"""Length of the first member's episode; each further member has two steps more."""


class Cards(Environment):
    """Renders a member in one colour: red encodes the number of steps of its episode, green the member's index."""

    @property
    def name(self) -> str:
        return "cards"

    def make(self, num_envs: int, seed: int) -> "CardsBatch":
        return CardsBatch(num_envs, seed)


class CardsBatch(EnvBase):
    batch_locked = True

    def __init__(self, num_envs: int, seed: int) -> None:
        super().__init__(device="cpu", batch_size=[num_envs])
        self._stream = torch.Generator().manual_seed(seed)
        self._tilt = np.random.rand()  # from the global random state, which a video must not change
        self._steps = torch.zeros(num_envs, 1, dtype=torch.int64)
        self._length = STEPS + 2 * torch.arange(num_envs).unsqueeze(-1)
        flag = Categorical(2, shape=(num_envs, 1), dtype=torch.bool)
        self.observation_spec = Composite(observation=Unbounded(shape=(num_envs, 2)), shape=(num_envs,))
        self.action_spec = Bounded(-1, 1, shape=(num_envs, 1), dtype=torch.float32)
        self.reward_spec = Unbounded(shape=(num_envs, 1))
        self.full_done_spec = Composite(done=flag, terminated=flag.clone(), truncated=flag.clone(), shape=(num_envs,))

    def _write(self, **entries: torch.Tensor) -> TensorDictBase:
        noise = torch.randn(self._steps.shape, generator=self._stream)
        observation = torch.cat([self._steps / STEPS, noise + self._tilt], -1)
        return TensorDict({"observation": observation, **entries}, batch_size=self.batch_size)

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        chosen = torch.ones_like(self._steps, dtype=torch.bool)
        if tensordict is not None and "_reset" in tensordict:
            chosen = tensordict["_reset"].reshape(-1, 1)
        self._steps[chosen] = 0
        none = torch.zeros_like(chosen)
        return self._write(done=none, terminated=none.clone(), truncated=none.clone())

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self._steps += 1
        cut = self._steps >= self._length
        reward = tensordict["action"] * self._steps
        return self._write(reward=reward, done=cut, terminated=torch.zeros_like(cut), truncated=cut.clone())

    def _set_seed(self, seed: int | None) -> None:
        self._stream.manual_seed(seed or 0)

    def render(self, index: int, height: int, width: int) -> np.ndarray:
        picture = np.zeros((height, width, 3), np.uint8)
        picture[:] = colour(index, int(self._steps[index]))
        return picture


def colour(index: int, steps: int) -> tuple[int, int, int]:
    return 12 * steps, 40 + 40 * index, 128


def cards_data(**changes: Any) -> Any:
    return small_data(environment=Cards(), **{"total_frames": 400, "init_random_frames": 80, **changes})


def videos(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "videos").iterdir())


def test_the_environment_of_these_tests_meets_torchrl_specs() -> None:
    check_env_specs(Cards().make(3, seed=0))


@pytest.mark.parametrize("episodes", [1, 2, 5])
def test_each_member_is_shown_in_its_tile_until_its_episode_ends(tmp_path: Path, episodes: int) -> None:
    """Five members are two rows of three tiles, the last tile black; the video is as long as the longest episode."""
    file = tmp_path / "new" / "film.mp4"
    _, last = film(Cards().make(episodes, seed=0), None, file, height=32, width=48, fps=25)
    rows, columns = {1: (1, 1), 2: (1, 2), 5: (2, 3)}[episodes]
    pictures = iio.imread(file).astype(int)
    length = STEPS + 2 * (episodes - 1)
    assert pictures.shape == (length, 32 * rows, 48 * columns, 3)
    assert iio.immeta(file)["fps"] == 25
    for step, picture in enumerate(pictures, start=1):
        for place in range(rows * columns):
            row, column = place // columns, place % columns
            inner = picture[32 * row + 8 : 32 * row + 24, 48 * column + 8 : 48 * column + 40]
            expected = colour(place, min(step, STEPS + 2 * place)) if place < episodes else (0, 0, 0)
            assert abs(inner.mean((0, 1)) - expected).max() < 6, (step, place)
    assert abs(last.astype(int) - pictures[-1]).mean() < 4
    assert [path.name for path in file.parent.iterdir()] == ["film.mp4"]


def test_a_video_may_show_some_members_and_end_early(tmp_path: Path) -> None:
    env = Cards().make(4, seed=0)
    film(env, None, tmp_path / "first.mp4", episodes=1, height=16, width=16)
    film(env, None, tmp_path / "short.mp4", height=16, width=16, max_steps=3)
    assert iio.imread(tmp_path / "first.mp4").shape == (STEPS, 16, 16, 3)
    assert iio.imread(tmp_path / "short.mp4").shape == (3, 32, 32, 3)


def test_the_returns_of_a_video_equal_those_of_an_evaluation(tmp_path: Path) -> None:
    def policy(observation: torch.Tensor) -> torch.Tensor:
        return torch.tanh(observation.sum(-1, keepdim=True) + torch.randn(observation.shape[0], 1))

    L.seed_everything(4)
    expected = episode_returns(Cards().make(3, seed=2), policy)
    L.seed_everything(4)
    returns, _ = film(Cards().make(3, seed=2), policy, tmp_path / "film.mp4", episodes=1, height=16, width=16)
    assert torch.equal(returns, expected)


def test_an_interrupted_video_leaves_no_file(tmp_path: Path) -> None:
    def policy(observation: torch.Tensor) -> torch.Tensor:
        if observation[0, 0] > 0.5:
            raise RuntimeError("the policy failed")
        return torch.zeros(len(observation), 1)

    with pytest.raises(RuntimeError, match="the policy failed"):
        film(Cards().make(1, seed=0), policy, tmp_path / "film.mp4", height=16, width=16)
    assert not list(tmp_path.iterdir())


def test_a_run_writes_videos_and_training_does_not_change(tmp_path: Path) -> None:
    weights = []
    for callbacks in ([], [Video(every_frames=160, episodes=3, width=32, height=16)]):
        L.seed_everything(1)
        data = cards_data()
        agent = small_agent(data)
        trainer(tmp_path, list(callbacks)).fit(agent, data)
        weights.append(agent.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert videos(tmp_path) == ["frames=160.mp4", "frames=320.mp4", "frames=400.mp4"]
    assert iio.imread(tmp_path / "videos" / "frames=400.mp4").shape == (STEPS + 4, 32, 64, 3)


def test_a_run_that_continues_writes_the_remaining_videos(tmp_path: Path) -> None:
    def fit(ckpt_path: Path | None, **changes: Any) -> None:
        data = cards_data()
        callbacks = [Video(160, 1, 16, 16), RunCheckpoint(str(tmp_path / "checkpoints"))]
        run = trainer(tmp_path, callbacks, **changes)
        run.fit(small_agent(data), data, ckpt_path=ckpt_path, weights_only=True)

    fit(None, max_steps=120)  # frame 208
    assert videos(tmp_path) == ["frames=160.mp4"]
    (tmp_path / "videos" / "frames=160.mp4").unlink()
    fit(tmp_path / "checkpoints" / "last.ckpt")
    assert videos(tmp_path) == ["frames=320.mp4", "frames=400.mp4"]
    for file in (tmp_path / "videos").iterdir():
        file.unlink()
    fit(tmp_path / "checkpoints" / "last.ckpt")
    assert videos(tmp_path) == []


def test_the_last_picture_is_logged_to_tensorboard(tmp_path: Path) -> None:
    data = cards_data()
    logger = TensorBoardLogger(tmp_path, name="", version="tensorboard")
    run = trainer(tmp_path, [Video(episodes=2, width=32, height=16)], logger=logger)
    run.fit(small_agent(data), data)
    logger.finalize("success")
    (event,) = EventAccumulator(logger.log_dir).Reload().Images("video")
    picture = iio.imread(event.encoded_image_string)
    assert event.step == run.global_step
    assert picture.shape == (16, 64, 3)
    assert tuple(picture[8, 16]) == colour(0, STEPS) and tuple(picture[8, 48]) == colour(1, STEPS + 2)


def test_the_video_is_logged_to_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    data = cards_data()
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    trainer(tmp_path, [Video(episodes=2, width=32, height=16)], logger=logger).fit(small_agent(data), data)
    logger.experiment.finish()
    (kept,) = tmp_path.glob("wandb/offline-run-*/files/media/videos/video*.mp4")
    assert kept.read_bytes() == (tmp_path / "videos" / "frames=400.mp4").read_bytes()


@pytest.mark.parametrize(
    ("argument", "allowed"),
    [
        ({"every_frames": 0}, ">= 1"),
        ({"episodes": 0}, ">= 1"),
        ({"fps": 0}, ">= 1"),
        ({"width": 33}, "an even number >= 16"),
        ({"height": 8}, "an even number >= 16"),
        ({"max_steps": 0}, ">= 1"),
    ],
)
def test_arguments_out_of_range_are_refused(argument: dict[str, int], allowed: str) -> None:
    ((name, value),) = argument.items()
    with pytest.raises(ValueError, match=f"^{name}={value}: must be {allowed}$"):
        Video(**argument)


class SmallCards(Cards):
    """Renders pictures of a fixed size, whatever size is requested."""

    def make(self, num_envs: int, seed: int) -> CardsBatch:
        env = super().make(num_envs, seed)
        env.__class__ = type("FixedBatch", (CardsBatch,), {"render": lambda self, i, h, w: np.zeros((8, 8, 3))})
        return env


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Maze, "Video: maze-four-goals has no pictures: MazeBatch has no method render"),
        (lambda: DMControl("cartpole", "swingup"), "Video: cartpole-swingup cannot be drawn with .*set MUJOCO_GL=egl"),
        (SmallCards, r"Video: cards cannot be filmed: render gave \(\(8, 8, 3\), 'float64'\)"),
    ],
)
def test_environments_that_cannot_render_are_refused_before_training(
    tmp_path: Path, make: Callable[[], Environment], message: str
) -> None:
    environment = make()
    if os.environ["MUJOCO_GL"] != "disabled" and isinstance(environment, DMControl):
        pytest.skip("a renderer was chosen")
    data = small_data(environment=environment, init_random_frames=100)
    run = trainer(tmp_path, [Video()])
    with pytest.raises(CannotFilmError, match=message):
        run.fit(small_agent(data), data)
    assert (run.global_step, data.env_frames) == (0, 0)
    assert not (tmp_path / "videos").exists()


EGL = {**os.environ, "MUJOCO_GL": "egl", "OMP_NUM_THREADS": "1"}
FIT = """
import sys
from pathlib import Path
from helpers import small_agent, small_data, trainer
from dqs_callbacks import Video
from dqs_lightning.envs import DMControl
DMControl("cartpole", "swingup").make(1, seed=0).render()
print("drawn")
data = small_data(environment=DMControl("cartpole", "swingup", 50), total_frames=4_000, init_random_frames=3_200)
trainer(Path(sys.argv[1]), [Video(episodes=3, width=96, height=64)]).fit(small_agent(data), data)
"""


@pytest.mark.slow
def test_dm_control_is_rendered_if_egl_is_available(tmp_path: Path) -> None:
    environment = {**EGL, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", FIT, str(tmp_path)], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    if "drawn" not in done.stdout:
        pytest.skip("MuJoCo cannot draw with EGL here")
    assert done.returncode == 0, done.stderr
    assert videos(tmp_path) == ["frames=4000.mp4"]
    pictures = iio.imread(tmp_path / "videos" / "frames=4000.mp4").astype(int)
    assert pictures.shape == (20, 128, 192, 3)
    for row, column in ((0, 0), (0, 1), (1, 0)):  # each tile changes and is not black
        tile = pictures[:, 64 * row : 64 * row + 64, 96 * column : 96 * column + 96]
        assert tile.mean() > 20 and abs(tile[0] - tile[-1]).max() > 60
    assert pictures[:, 64:, 96:].max() < 20
