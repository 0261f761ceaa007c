"""Flags of Lightning's Trainer on `dqs-fit`: each has its documented effect, or is refused in one line that names it.

The docstrings of the cases are the table of docs/lightning.md.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import lightning as L
import pytest
import torch
from effects import Effects, write_table
from helpers import maze_data, small_agent, trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from dqs_callbacks import Evaluate
from dqs_lightning.checkpoint.archive import safe_load
from dqs_lightning.cli.errors import DONE, STOPPED, InputError
from dqs_lightning.cli.fit import train
from dqs_lightning.cli.training import FitCLI
from dqs_lightning.collection.flags import NEVER
from dqs_lightning.stop_signal import STOP

SMALL = (
    "--data.environment=Maze", "--trainer.accelerator=cpu", "--data.num_envs=2", "--data.total_frames=160",
    "--data.init_random_frames=64", "--data.batch_size=16", "--model.critic_backbone.hidden=[16,16]",
    "--model.actor_backbone.hidden=[16,16]", "--model.energy_estimator.num_samples=4", "--model.sampler.steps=3",
    "--evaluate.every_frames=80", "--evaluate.episodes=2", "--run_dir=r", "--ckpt_path=auto",
)  # fmt: skip
UPDATES = 96
EVALUATED = [80, 160]


class Ended(NamedTuple):
    """A run that has ended."""

    code: int
    err: str
    cli: FitCLI

    @property
    def updates(self) -> int:
        return self.cli.trainer.global_step

    def evaluated(self) -> list[int]:
        file = Path("r/scores.jsonl")
        return [json.loads(line)["env_frames"] for line in file.read_text().splitlines()] if file.exists() else []


Fit = Callable[..., Ended]
effect = Effects()


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Fit:
    """Runs `dqs-fit` in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DQS_RUN_DIR", "")
    monkeypatch.delenv("DQS_RUN_DIR")

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["dqs-fit", *SMALL, *arguments])
        cli = FitCLI()
        try:
            code = cli.fit()
        finally:
            STOP.uninstall()
        return Ended(code, capsys.readouterr().err.strip(), cli)

    return run


def weights() -> dict[str, torch.Tensor]:
    return safe_load(Path("r/checkpoints/last.ckpt"))["state_dict"]


@effect("max_epochs")
def max_epochs(fit: Fit) -> None:
    """Any value but 0 ends at `data.total_frames`, since a run is one epoch."""
    for number in ("-1", "null", "7"):
        ended = fit(f"--trainer.max_epochs={number}", f"--run_dir=r{number}")
        assert (ended.code, ended.updates) == (DONE, UPDATES)


@effect("max_steps")
def max_steps(fit: Fit) -> None:
    """Stops after so many updates with exit code 75; the run can be continued."""
    first = fit("--trainer.max_steps=20")
    assert (first.code, first.updates) == (STOPPED, 20)
    again = "continue with --run_dir=r --ckpt_path=auto and a higher limit"
    assert first.err.splitlines()[-1] == f"dqs-fit: stopped at 96 of 160 frames by trainer.max_steps=20; {again}"
    assert (second := fit()).code == DONE and second.updates == UPDATES


@effect("max_time")
def max_time(fit: Fit) -> None:
    """Stops after so much time of training with exit code 75; the run can be continued."""
    first = fit("--trainer.max_time={seconds: 1}", "--data.total_frames=40_000")
    assert first.code == STOPPED and first.updates > 0
    assert "frames by trainer.max_time; continue with --run_dir=r --ckpt_path=auto and a higher limit" in first.err


@effect("limit_train_batches")
def limit_train_batches(fit: Fit) -> None:
    """Stops after so many updates, or this share of them, with exit code 75; the run can be continued."""
    first = fit("--trainer.limit_train_batches=0.25")
    assert (first.code, first.updates) == (STOPPED, UPDATES // 4)
    assert "by trainer.limit_train_batches=0.25" in first.err
    assert (second := fit()).code == DONE and second.updates == UPDATES


@effect("limit_val_batches")
def limit_val_batches(fit: Fit) -> None:
    """0 switches evaluations off, 1 is the default, and others are refused: `evaluate.episodes` is their size."""
    assert fit("--trainer.limit_val_batches=0").evaluated() == []
    assert fit("--trainer.limit_val_batches=1", "--run_dir=r2").code == DONE
    refused(fit, "limit_val_batches=3", "must be 0 or 1; set evaluate.episodes")


@effect("fast_dev_run")
def fast_dev_run(fit: Fit) -> None:
    """Makes so many updates after the warm-up, with an evaluation after each, and keeps nothing."""
    ended = fit("--trainer.fast_dev_run=3")
    assert (ended.code, ended.updates) == (DONE, 3)
    assert ended.cli.trainer.callback_metrics["eval/return"].isfinite()
    assert ended.err.endswith("dqs-fit: trainer.fast_dev_run: 3 updates; nothing is kept")
    assert not Path("r").exists()


@effect("num_sanity_val_steps")
def num_sanity_val_steps(fit: Fit) -> None:
    """Steps of the evaluation's environments before training; `dqs-fit` has 0 by default, the Trainer 2."""
    steps: list[int] = []

    class Count(L.Callback):
        def on_validation_start(self, trainer: L.Trainer, *_: object) -> None:
            steps.append(trainer.num_sanity_val_steps if trainer.sanity_checking else -1)

    plain = fit().cli.model.state_dict()
    ended = fit("--trainer.num_sanity_val_steps=2", "--run_dir=r2")
    assert all(torch.equal(value, plain[name]) for name, value in ended.cli.model.state_dict().items())
    data = maze_data()
    trainer(Path(), [Count(), Evaluate(160, 2)], num_sanity_val_steps=2).fit(small_agent(data), data)
    assert steps == [2, -1]


@effect("log_every_n_steps")
def log_every_n_steps(fit: Fit) -> None:
    """Updates between two rows of the loggers; each row has the means over these."""
    fit("--trainer.log_every_n_steps=24")
    header, *rows = Path("r/metrics.csv").read_text().splitlines()
    column = header.split(",").index("train/critic_loss")
    assert sum(bool(row.split(",")[column]) for row in rows) == UPDATES // 24


@effect("enable_progress_bar")
def enable_progress_bar(fit: Fit) -> None:
    """False leaves out every progress bar of the configuration."""
    bars = '--trainer.callbacks=[{"class_path": "FramesProgress", "init_args": {"line_s": 0.001}}]'
    assert "160/160 frames" in fit(bars).err
    assert fit(bars, "--trainer.enable_progress_bar=false", "--run_dir=r2").err == ""


@effect("deterministic")
def deterministic(fit: Fit) -> None:
    """Uses deterministic algorithms only, as in Lightning; on a CPU the run is the same."""
    plain = fit().cli.model.state_dict()
    try:
        made = fit("--trainer.deterministic=true", "--run_dir=r2").cli.model.state_dict()
        assert torch.are_deterministic_algorithms_enabled()
        assert all(torch.equal(value, plain[name]) for name, value in made.items())
    finally:
        torch.use_deterministic_algorithms(False)


@effect("detect_anomaly")
def detect_anomaly(fit: Fit) -> None:
    """Is on during each backward pass, as in Lightning, which makes it slower."""
    found: list[bool] = []

    class Look(L.Callback):
        def on_before_backward(self, *_: object) -> None:
            found.append(torch.is_anomaly_enabled())

    for on in (True, False):
        data = maze_data()
        trainer(Path(), [Look()], detect_anomaly=on, max_steps=2).fit(small_agent(data), data)
    assert found == [True, True, False, False]
    assert fit("--trainer.detect_anomaly=true", "--trainer.max_steps=2").cli.trainer._detect_anomaly


@effect("profiler")
def profiler(fit: Fit) -> None:
    """Measures hooks and steps, evaluations included."""
    made = fit("--trainer.profiler=simple").cli.trainer.profiler
    durations = made.recorded_durations
    assert len(durations["run_training_batch"]) == UPDATES
    assert len(next(v for k, v in durations.items() if k.endswith("OnlineData.val_dataloader"))) == 1


@effect("inference_mode")
def inference_mode(fit: Fit) -> None:
    """Whether `Trainer.validate` uses it; an agent that was validated in it can still be trained."""
    data = maze_data()
    agent = small_agent(data)
    run = trainer(Path(), [Evaluate(160, 2)])
    run.validate(agent, data, verbose=False)
    run.fit(agent, data)
    assert run.global_step == UPDATES


def refused(fit: Fit, flag: str, reason: str) -> None:
    """Checks that a flag is refused in one line that names it, before anything is written."""
    with pytest.raises(InputError) as error:
        fit(f"--trainer.{flag}")
    name, _, value = flag.partition("=")
    assert str(error.value).startswith(f"trainer.{name}={value}: ") and reason in str(error.value)
    assert "\n" not in str(error.value)


REFUSED = {
    "max_epochs=0": "must be >= 1 or -1",
    "min_epochs=2": "must be <= 1; a run is one epoch, whose length is data.total_frames",
    "min_steps=10": "must be left out; the run would not stop on a signal before it",
    "val_check_interval=10": "evaluate.every_frames decides",
    "val_check_interval=0.5": "evaluate.every_frames decides",
    "check_val_every_n_epoch=2": "must be left out; a run is one epoch, whose length is data.total_frames",
    "overfit_batches=1": "must be 0",
    "reload_dataloaders_every_n_epochs=1": "must be 0",
    "accumulate_grad_batches=2": "set data.batch_size",
    "gradient_clip_val=1.0": "set model.max_grad_norm",
    "limit_test_batches=2": "a run trains and evaluates only",
    "limit_predict_batches=2": "a run trains and evaluates only",
    "barebones=True": "a run writes metrics and checkpoints",
    "default_root_dir=here": "run_dir is where the run lives",
    "enable_checkpointing=False": "checkpoint.every_n_updates decides",
    "precision=64-true": "must be 32-true or bf16-mixed",
    "precision=16-mixed": "must be 32-true or bf16-mixed",
    "num_nodes=2": "must be left out; start the nodes by torchrun or SLURM",
    "strategy=ddp_spawn": "must be one of auto, ddp",
    "log_every_n_steps=0": "must be >= 1",
}


@pytest.mark.parametrize("flag", REFUSED)
def test_a_flag_without_a_meaning_here_is_refused_by_name(fit: Fit, flag: str) -> None:
    refused(fit, flag, REFUSED[flag])
    assert not Path("r").exists()


@pytest.mark.parametrize("name", effect)
def test_a_flag_of_the_trainer_has_its_effect(fit: Fit, name: str) -> None:
    effect[name](fit)


def test_the_page_lists_the_flags() -> None:
    write_table("flags", ("flag", "effect"), {f"`{name}`": text for name, text in effect.rows().items()})
    refusals = {f"`{flag}`": text for flag, text in REFUSED.items()}
    write_table("refused", ("flag", "message"), refusals)


def test_python_runs_refuse_the_same_flags(tmp_path: Path) -> None:
    data = maze_data()
    with pytest.raises(MisconfigurationException, match=r"^min_steps=10: must be left out"):
        trainer(tmp_path, min_steps=10).fit(small_agent(data), data)
    with pytest.raises(MisconfigurationException, match=r"^val_check_interval=10: must be left out; evaluate\.ev"):
        trainer(tmp_path, [Evaluate(160, 2)], val_check_interval=10).fit(small_agent(data), data)

    with pytest.raises(MisconfigurationException, match=r"^check_val_every_n_epoch=2: must be left out; a run"):
        trainer(tmp_path, [Evaluate(160, 2)], check_val_every_n_epoch=2).fit(small_agent(data), data)


def test_the_settings_of_evaluate_are_not_refused_at_a_second_fit(tmp_path: Path) -> None:
    run = trainer(tmp_path, [Evaluate(160, 2)])
    data = maze_data()
    run.fit(small_agent(data), data)
    assert run.check_val_every_n_epoch == NEVER
    run.fit(small_agent(data), data)


def test_without_the_callback_lightning_decides_when_to_evaluate(tmp_path: Path) -> None:
    """At the end by default, or every `val_check_interval` updates; barebones trainers do neither."""
    evaluated: list[int] = []

    class Look(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, *_: object) -> None:
            evaluated.append(trainer.global_step)

    for flags, expected in (
        ({}, [96]),
        ({"val_check_interval": 40}, [40, 80]),
        ({"val_check_interval": 0.5}, [48, 96]),
    ):
        evaluated.clear()
        data = maze_data()
        trainer(tmp_path, [Look()], limit_val_batches=1, **flags).fit(small_agent(data), data)
        assert evaluated == expected


def test_a_run_ends_when_the_return_is_reached(fit: Fit) -> None:
    """With exit code 0, since it need not be continued."""
    ended = fit("--evaluate.stop_at=-1")
    assert (ended.code, ended.evaluated()) == (DONE, [80])
    assert ended.err.endswith("dqs-fit: ended at 80 of 160 frames: evaluate.stop_at=-1: the mean return is 0.0")
    node = {"class_path": "EarlyStopping", "init_args": {"monitor": "eval/return", "patience": 1}}
    stop = f"--trainer.callbacks={json.dumps([node])}"
    ended = fit(stop, "--run_dir=r2", "--evaluate.every_frames=32")
    assert ended.code == DONE and "dqs-fit: ended at 96 of 160 frames: EarlyStopping: Monitored metric" in ended.err
    further = fit(stop, "--run_dir=r2", "--evaluate.every_frames=32", "--trainer.max_steps=40")
    assert (further.code, further.updates) == (STOPPED, 40)  # the earlier reason is not that of this stop


def test_the_command_itself_stops_with_75(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dqs-fit", *SMALL, "--trainer.max_steps=5"])
    assert train() == STOPPED
