"""Films of a policy: episodes side by side in one mp4, during a run or after it."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from ctypes.util import find_library
from pathlib import Path

import imageio
import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.seed import isolate_rng
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from dqs_callbacks.periodic import Periodic
from dqs_lightning.agents import Agent
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.evaluation.returns import STEP_LIMIT, Policy, episode_returns, policy_of
from dqs_lightning.ranges import Count, checked


class CannotFilmError(MisconfigurationException):
    """An environment without pictures, or a renderer that does not work here; the message follows the task's name."""


class Video(Periodic):
    """Films the policy every `every_frames` frames and at the end (see `Periodic`), in videos/frames=<N>.mp4.

    The film shows one picture for each agent step, the episodes side by side; those that are over show their last one.
    They begin as those do that `Evaluate` measures at the same frame.

    The environment's class needs a method `render(index, height, width)`, as dm_control's and Gymnasium's have; MuJoCo
    draws with MUJOCO_GL=egl only, which `dqs-fit` does not set by itself. Drawing takes longer than the steps that are
    drawn. W&B's logger gets the film, TensorBoard's its last picture.

    Args:
        every_frames: environment frames between films; >= 1.
        episodes: episodes of each; >= 1.
        width: of one episode's picture, in pixels; even, >= 16.
        height: of one episode's picture, in pixels; even, >= 16.
        fps: pictures per second of playback; >= 1.
        deterministic: use the noise-free policy.
        max_steps: agent steps after which a film ends; null: when all episodes are over.

    Raises:
        CannotFilmError: when a fit starts and a first picture cannot be drawn.
    """

    @checked
    def __init__(
        self,
        every_frames: Count = 100_000,
        episodes: Count = 4,
        width: int = 320,
        height: int = 240,
        fps: Count = 30,
        deterministic: bool = False,
        max_steps: Count | None = None,
    ) -> None:
        super().__init__(every_frames)
        for name, value in (("width", width), ("height", height)):
            if not value >= 16 or value % 2:  # the colours of mp4 are halved in both directions
                raise ValueError(f"{name}={value}: must be an even number >= 16")
        self.episodes, self.width, self.height, self.fps = episodes, width, height, fps
        self.deterministic, self.max_steps = deterministic, max_steps

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # On every rank: if rank zero alone refused, the others would wait for it.
        try:
            check_films(OnlineData.of(trainer), self.height, self.width)
        except CannotFilmError as error:
            raise CannotFilmError(f"Video: {error}") from error

    def measure(self, trainer: L.Trainer, agent: Agent, seed: int) -> None:
        data = OnlineData.of(trainer)
        file = Path(trainer.default_root_dir) / "videos" / f"frames={data.env_frames}.mp4"
        policy = policy_of(agent, self.deterministic)
        with closing(data.make_environment(self.episodes, seed)) as env:
            _, last = film(env, policy, file, None, self.height, self.width, self.fps, self.max_steps)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("video", last, trainer.global_step, dataformats="HWC")
            elif isinstance(logger, WandbLogger):
                logger.log_video("video", [str(file)], trainer.global_step)


def film(
    env: EnvBase,
    policy: Policy | None,
    file: Path,
    episodes: int | None = None,
    height: int = 240,
    width: int = 320,
    fps: int = 30,
    max_steps: int | None = None,
    step_limit: int = STEP_LIMIT,
) -> tuple[Tensor, np.ndarray]:
    """Films the first episode of each member: one picture a step, the members side by side, as square as possible.

    Returns the returns [num_envs], and the last picture [rows x height, columns x width, 3].

    Args:
        env: batch size [num_envs], with `render(index, height, width)` -> uint8 [height, width, 3]; it is reset first.
        policy: None acts uniformly at random.
        file: an mp4; it appears there when it is whole.
        episodes: film so many of the members, the first ones; None: all. The others run unseen.
        height: as `width`, `fps` and `max_steps`, see `Video`.
        width: of one member's picture.
        fps: of playback.
        max_steps: of the film.
        step_limit: see `episode_returns`.
    """
    running = torch.ones(env.batch_size, dtype=torch.bool)
    shown = running[:episodes]  # a view: it changes with `running`
    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)
    tiles = np.zeros((rows, height, columns, width, 3), np.uint8)
    picture = tiles.reshape(rows * height, columns * width, 3)  # a view too

    def draw(step: TensorDictBase) -> None:
        for index in shown.nonzero().flatten().tolist():
            tiles[index // columns, :, index % columns] = env.render(index, height, width)
        if shown.any():
            append(picture)
        running.logical_and_(~step["next", "done"].squeeze(-1).cpu())

    with _mp4(file, fps) as append:
        returns = episode_returns(env, policy, draw, max_steps, step_limit)
    return returns, picture


def check_films(data: OnlineData, height: int = 240, width: int = 320) -> None:
    """Draws a picture of each task in environments of its own, with an isolated random state.

    Raises:
        CannotFilmError: if it cannot.
    """
    tasks = len(data.environment.tasks)
    with isolate_rng(), closing(data.make_environment(tasks, seed=0)) as env:
        env.reset()
        # Of the class: some of TorchRL's environments answer for attributes that they do not have.
        if not callable(getattr(type(env.inner), "render", None)):
            name = type(env.inner).__name__
            raise CannotFilmError(f"{env.label} has no pictures: {name} has no method render(index, height, width)")
        try:
            pictures = [env.render(task, height, width) for task in range(tasks)]
        except Exception as error:
            reason, renderer = " ".join(str(error.__cause__ or error).split()), os.environ.get("MUJOCO_GL")
            hint = "" if renderer == "egl" else "; for MuJoCo, set MUJOCO_GL=egl before the command"
            if not any(map(find_library, ("EGL", "OSMesa"))):
                hint = "; MuJoCo needs the EGL or the OSMesa library (Debian: libegl1 or libosmesa6)"
            raise CannotFilmError(
                f"{env.label} cannot be drawn with MUJOCO_GL={renderer}: {reason[:200].rstrip('.')}{hint}"
            ) from error
        expected = ((height, width, 3), "uint8")
        for picture in pictures:
            found = (getattr(picture, "shape", None), str(getattr(picture, "dtype", type(picture).__name__)))
            if found != expected:
                raise CannotFilmError(f"{env.label} cannot be filmed: render gave {found}, not {expected}")


@contextmanager
def _mp4(file: Path, fps: int) -> Iterator[Callable[[np.ndarray], None]]:
    """Append pictures to a film, which are encoded as they come; the file is whole or not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}")
    try:
        with closing(imageio.get_writer(partial, fps=fps, macro_block_size=None)) as writer:
            yield writer.append_data
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
