"""Interpolations are saved as written, so that secrets in environment variables reach no file of a run."""

import sys
from pathlib import Path

import pytest
import yaml

from dqs_lightning.checkpoint.archive import CheckpointError, safe_load
from dqs_lightning.cli import fit
from dqs_lightning.cli.interpolation import as_yaml, interpolations
from dqs_lightning.cli.provenance import read_run
from dqs_lightning.collection.data import OnlineData

CONFIGS = Path(__file__).parents[2] / "configs"
SECRET = "correct-horse-battery"


def test_interpolations_are_put_back_in_their_original_places() -> None:
    raw = yaml.safe_load("a: ${oc.env:X}\nb: [1, {c: '${a}', d: e}]\n")
    written = dict(interpolations(raw))
    assert written == {("a",): "${oc.env:X}", ("b", 1, "c"): "${a}"}
    assert yaml.safe_load(as_yaml("a: 1\nb: [1, {c: 1, d: e}]\n", written)) == raw
    assert yaml.safe_load(as_yaml("a: 1\nb: null\n", written)) == {"a": "${oc.env:X}", "b": None}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A finished run with two interpolations: the environment's label is a secret, and one setting uses another's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKEN", SECRET)
    Path("mine.yaml").write_text(
        f"extends: {CONFIGS / 'maze.yaml'}\n"
        "data:\n  environment:\n    init_args:\n      label: ${oc.env:TOKEN}\n"
        "  total_frames: 128\n  init_random_frames: 64\n  batch_size: 8\n"
        "model:\n  init_args:\n    temperature:\n      class_path: LogLinear\n"
        "      init_args:\n        over_updates: ${data.total_frames}\n"
        "trainer:\n  callbacks: []\n"
    )
    arguments = ["--config", "mine.yaml", "--run_dir=r", "--evaluate.episodes=2"]
    monkeypatch.setattr(sys, "argv", ["dqs-fit", *arguments])
    assert fit.main() == 0
    return tmp_path / "r"


def test_no_file_of_the_run_holds_the_secret(run: Path) -> None:
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {"config.yaml", "hparams.yaml", "last.ckpt"} <= {path.name for path in files}
    assert [path.name for path in files if SECRET.encode() in path.read_bytes()] == []
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["environment"]["init_args"]["label"] == "${oc.env:TOKEN}"
    assert config["model"]["init_args"]["temperature"]["init_args"]["over_updates"] == "${data.total_frames}"
    assert read_run(run)["task"] == "${oc.env:TOKEN}"
    settings = safe_load(run / "checkpoints" / "last.ckpt")["settings"]
    assert settings["data.environment.label"] == "${oc.env:TOKEN}"
    assert settings["model.temperature.over_updates"] == 128


def test_loading_a_checkpoint_resolves_the_interpolation_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = run / "checkpoints" / "last.ckpt"
    monkeypatch.setenv("TOKEN", "another")
    assert OnlineData.load_from_checkpoint(last).environment.label == "another"
    monkeypatch.delenv("TOKEN")
    with pytest.raises(CheckpointError, match=r"its data cannot be built here: .*'TOKEN' not found"):
        OnlineData.load_from_checkpoint(last)
