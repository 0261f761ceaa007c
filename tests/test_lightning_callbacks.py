"""Lightning's callbacks on a run: each has the effect that its documentation describes.

The docstrings of the cases are the table of docs/lightning.md.
"""

import json
import re
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import pytest
import torch
from effects import Effects, write_table
from helpers import maze_data, small_agent, trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    DeviceStatsMonitor,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    OnExceptionCheckpoint,
    RichModelSummary,
    RichProgressBar,
    StochasticWeightAveraging,
    Timer,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from dqs_callbacks import Evaluate
from dqs_lightning.agents import DQS, load_agent
from dqs_lightning.collection.flags import CALLBACKS
from dqs_lightning.run.checkpoint import RunCheckpoint

EVALUATED = [80, 96, 128, 160]
"""Frames of the evaluations: the first after updates, then every 32. A block has 16 frames and 16 updates."""
effect = Effects()


def run(
    folder: Path, *callbacks: Callback, seed: int = 5, cls: type[DQS] = DQS, fit: bool = True, **flags: Any
) -> L.Trainer:
    """Trains DQS in the maze for 96 updates, with an evaluation at each of the frames EVALUATED."""
    L.seed_everything(seed, verbose=False)
    data = maze_data()
    scores = Evaluate(every_frames=32, episodes=4, path=str(folder / "scores.jsonl"))
    made = trainer(folder, [*callbacks, scores], logger=CSVLogger(folder, name="", version=""), **flags)
    agent = small_agent(data)
    agent.__class__ = cls
    if fit:
        made.fit(agent, data)
    return made


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]


def logged(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "metrics.csv")


@effect("EarlyStopping")
def early_stopping(folder: Path) -> None:
    """Ends the run after `patience` evaluations without an improvement; `dqs-fit` then exits with 0."""
    stop = EarlyStopping("eval/return", mode="max", min_delta=1e6, patience=2)
    made = run(folder, stop)
    assert [row["env_frames"] for row in rows(folder)] == EVALUATED[:3]  # two after the first, which is the best
    assert made.should_stop and made.global_step == 64 and stop.wait_count == 2
    never = EarlyStopping("eval/return", mode="max", min_delta=-1e6, patience=1)
    assert run(folder, never).global_step == 96


@effect("ModelCheckpoint")
def model_checkpoint(folder: Path) -> None:
    """With `monitor="eval/return", mode="max"` keeps the best evaluated agents; its files cannot be continued."""
    keep = ModelCheckpoint(folder / "kept", "{env_frames:.0f}", "eval/return", mode="max", save_top_k=2)
    seen: dict[int, float] = {}
    run(folder, Distinct(seen), keep)
    best = sorted(seen, key=lambda frames: seen[frames])[-2:]
    assert {path.name for path in (folder / "kept").iterdir()} == {f"env_frames={frames}.ckpt" for frames in best}
    assert float(keep.best_model_score) == pytest.approx(max(seen.values()))
    agent = load_agent(keep.best_model_path)
    assert agent.env_frames == best[-1]


@effect("LearningRateMonitor")
def learning_rate_monitor(folder: Path) -> None:
    """Logs the step sizes of actor and critics, as `lr-Adam/pg1` and so on."""
    agent = run(folder, LearningRateMonitor("step"), log_every_n_steps=20).lightning_module
    expected = [group["lr"] for group in agent.optimizers().param_groups]
    found = logged(folder).filter(like="lr-")
    assert found.shape[1] == len(expected) == 2
    assert found.dropna().iloc[-1].tolist() == pytest.approx(expected)


@effect("LRScheduler")
def schedulers(folder: Path) -> None:
    """One that the agent's `configure_optimizers` returns takes a step after each update."""

    class _Decaying(DQS):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.5)]

    agent = run(folder, cls=_Decaying).lightning_module
    group = agent.optimizers().param_groups[0]
    assert group["lr"] == pytest.approx(group["initial_lr"] * 0.5 ** (96 // 10))


@effect("ReduceLROnPlateau")
def plateau(folder: Path) -> None:
    """One that the agent's `configure_optimizers` returns takes a step after each evaluation, by `eval/return`."""

    class _Plateau(DQS):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            kind = torch.optim.lr_scheduler.ReduceLROnPlateau
            return [optimizer], [
                kind(optimizer, mode="max", factor=0.1, patience=1, threshold=1e6, threshold_mode="abs")
            ]

    agent = run(folder, cls=_Plateau).lightning_module
    group = agent.optimizers().param_groups[0]
    assert group["lr"] == pytest.approx(group.get("initial_lr", agent.hparams["critic_lr"]) * 0.1, rel=1e-6)


@effect("EMAWeightAveraging")
def averaging(folder: Path) -> None:
    """Evaluates, saves and finally keeps an average of the weights, as `WeightAveraging` does; training is the same."""

    class Follow(Callback):
        def __init__(self) -> None:
            self.average: list[torch.Tensor] = []
            self.evaluated: list[bool] = []

        def on_train_batch_end(self, trainer: L.Trainer, agent: L.LightningModule, *_: Any) -> None:
            now = [value.detach().clone() for value in agent.parameters()]
            if not self.average:
                self.average = now
            else:
                self.average = [0.9 * old + 0.1 * new for old, new in zip(self.average, now, strict=True)]
            self.last = now

        def on_validation_batch_end(self, trainer: L.Trainer, agent: L.LightningModule, *_: Any) -> None:
            pairs = zip(self.average, agent.parameters(), strict=True)
            self.evaluated.append(all(torch.allclose(a, b, atol=1e-6) for a, b in pairs))

    follow, plain = Follow(), Follow()
    agent = run(folder, EMAWeightAveraging(decay=0.9), follow).lightning_module
    run(folder, plain)
    assert follow.evaluated == [True] * len(EVALUATED) and not any(plain.evaluated)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(follow.average, agent.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(follow.last, plain.last, strict=True))


@effect("Timer")
def timer(folder: Path) -> None:
    """Ends the run after its duration, as `Trainer.max_time` does; the run can be continued."""
    watch = Timer(duration={"seconds": 1})

    class Wait(Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            while trainer.global_step == 10 and watch.time_remaining() > 0:
                pass

    made = run(folder, Wait(), watch)
    assert made.global_step == 11 and not made.datamodule.finished


@effect("DeviceStatsMonitor")
def device_stats(folder: Path) -> None:
    """Logs the load and the memory of CPU (`cpu_stats=True`, with psutil) or GPU."""
    pytest.importorskip("psutil")
    run(folder, DeviceStatsMonitor(cpu_stats=True), log_every_n_steps=20)
    found = logged(folder).filter(like="DeviceStatsMonitor").filter(like="cpu_vm_percent")
    assert found.size and found.dropna().stack().between(0, 100).all()


class Bars(Callback):
    """Keeps what a progress bar has counted when training ends."""

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        bar = trainer.progress_bar_callback
        if isinstance(bar, TQDMProgressBar):
            self.counted = bar.train_progress_bar.n, bar.train_progress_bar.total
        else:
            task = bar.progress.tasks[bar.train_progress_bar_id]
            self.counted = task.completed, task.total


@effect("RichProgressBar")
def rich_progress(folder: Path) -> None:
    """Shows updates; in a configuration it replaces `FramesProgress`, which shows frames."""
    bars = Bars()
    run(folder, bars, RichProgressBar(), enable_progress_bar=True)
    assert bars.counted == (96, 96)


@effect("TQDMProgressBar")
def tqdm_progress(folder: Path) -> None:
    """As `RichProgressBar`."""
    bars = Bars()
    run(folder, bars, TQDMProgressBar(), enable_progress_bar=True)
    assert bars.counted == (96, 96)


@effect("OnExceptionCheckpoint")
def on_exception(folder: Path) -> None:
    """Saves the agent when an exception ends the run."""

    class Fail(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 20:
                raise KeyError("a fault")

    with pytest.raises(KeyError, match="a fault"):
        run(folder, Fail(), OnExceptionCheckpoint(folder, "fault"))
    assert load_agent(folder / "fault.ckpt").env_frames == 96


@effect("ModelSummary")
def summary(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Lists the networks and their parameters when training begins; `dqs-fit` leaves it out by default."""
    with caplog.at_level("INFO", "lightning.pytorch"):
        agent = run(folder, ModelSummary(max_depth=1), enable_model_summary=True, max_steps=1).lightning_module
    total = sum(value.numel() for value in agent.parameters())
    assert f"{total / 1000:.1f} K" in re.sub(" +", " ", caplog.text)


@effect("RichModelSummary")
def rich_summary(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same as a table."""
    run(folder, RichModelSummary(max_depth=1), enable_model_summary=True, max_steps=1)
    text = capsys.readouterr().out
    assert re.search(r"diffusion\s*│\s*\w+", text) and "Total params" in text


@effect("LambdaCallback")
def hooks(folder: Path) -> None:
    """Calls functions at any hook: those of training at each update, those of validation at each evaluation."""
    calls: list[str] = []
    names = ("on_train_batch_end", "on_validation_start", "on_validation_batch_end", "on_validation_end")
    run(folder, LambdaCallback(**{name: lambda *_, name=name: calls.append(name) for name in names}))
    assert [calls.count(name) for name in names] == [96, *3 * [len(EVALUATED)]]


class Distinct(Callback):
    """Gives each evaluation another return, of which the second is the highest, and keeps them by frame."""

    def __init__(self, seen: dict[int, float]) -> None:
        self.seen = seen

    def on_validation_batch_start(
        self, trainer: L.Trainer, agent: Any, batch: dict[str, torch.Tensor], *_: Any
    ) -> None:
        value = [1.0, 9.0, 5.0, 3.0][len(self.seen)]
        batch["return"].fill_(value)
        self.seen[agent.env_frames] = value


@pytest.mark.parametrize("name", effect)
def test_a_callback_of_lightning_has_its_effect(tmp_path: Path, request: pytest.FixtureRequest, name: str) -> None:
    case = effect[name]
    case(tmp_path, *(request.getfixturevalue(fixture) for fixture in case.__annotations__ if fixture.startswith("cap")))


def test_the_page_lists_the_callbacks() -> None:
    write_table("callbacks", ("callback", "effect"), {f"`{name}`": text for name, text in effect.rows().items()})
    refused = {f"`{kind.__name__}`": reason for kind, reason in CALLBACKS.items()}
    write_table("refused callbacks", ("callback", "reason"), refused)


@pytest.mark.parametrize(
    ("callback", "advice"),
    [
        (StochasticWeightAveraging(1e-3), "use EMAWeightAveraging"),
        (GradientAccumulationScheduler({0: 2}), "set data.batch_size"),
        (BatchSizeFinder(), "set data.batch_size"),
        (LearningRateFinder(), "set model.actor_lr and model.critic_lr"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_callbacks_that_would_have_no_effect_are_refused(tmp_path: Path, callback: Callback, advice: str) -> None:
    with pytest.raises(MisconfigurationException, match=f"^callbacks: {type(callback).__name__} .*{advice}$"):
        run(tmp_path, callback)


def test_training_is_bitwise_the_same_with_and_without_evaluations(tmp_path: Path) -> None:
    with_all = run(tmp_path, EarlyStopping("eval/return", mode="max", patience=100), ModelCheckpoint(tmp_path / "kept"))
    L.seed_everything(5, verbose=False)
    data = maze_data()
    agent = small_agent(data)
    trainer(tmp_path, []).fit(agent, data)
    for name, value in agent.state_dict().items():
        assert torch.equal(value, with_all.lightning_module.state_dict()[name]), name


def test_callbacks_continue_with_their_state(tmp_path: Path) -> None:
    """A run that is stopped and continued has the evaluations, the patience and the best agent of a whole one."""
    ends = []
    for stops in ([], [50, 70]):
        folder = tmp_path / str(len(stops))
        seen: dict[int, float] = {}
        for limit in [*stops, -1]:
            L.seed_everything(5, verbose=False)
            data, last = maze_data(), folder / "last.ckpt"
            patience = EarlyStopping("eval/return", mode="max", patience=100)
            scores = Evaluate(every_frames=32, episodes=4, path=str(folder / "scores.jsonl"))
            checkpoint = RunCheckpoint(str(folder), keep=2)
            callbacks = [Distinct(seen), patience, scores, checkpoint]
            made = trainer(folder, callbacks, max_steps=limit)
            made.fit(small_agent(data), data, ckpt_path=last if last.exists() else None, weights_only=True)
        best = load_agent(folder / "best.ckpt")
        ends.append(
            ([row["return_mean"] for row in rows(folder)], patience.wait_count, best.env_frames, made.global_step)
        )
        assert checkpoint.best_return == 9.0
    assert ends[0] == ends[1] == ([1.0, 9.0, 5.0, 3.0], 2, EVALUATED[1], 96)
