"""Tests of files of measurements, such as scores.jsonl."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import small_data

from dqs_callbacks import Evaluate
from dqs_callbacks.periodic import drop_later_rows


def at(updates: int) -> Any:
    """Makes a trainer after the given number of updates."""
    return SimpleNamespace(datamodule=small_data(), global_step=updates, fast_dev_run=False)


def updates_in(file: Path) -> list[int]:
    return [json.loads(line)["updates"] for line in file.read_text().splitlines()]


def test_rows_that_could_not_be_written_to_a_full_disk_are_written_later(tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    evaluate = Evaluate(path=str(file))
    file.symlink_to("/dev/full")
    with pytest.warns(UserWarning, match=r"scores.jsonl: cannot be written .*kept for the next attempt"):
        evaluate.add(at(1), {"return_mean": 1.0})
    file.unlink()
    evaluate.add(at(2), {"return_mean": 2.0})
    assert updates_in(file) == [1, 2]
    evaluate.add(at(3), {"return_mean": 3.0})
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"env_frames": 0, "updates": updates, "return_mean": float(updates)} for updates in (1, 2, 3)
    ]


def test_rows_after_the_checkpoint_are_deleted(tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    file.write_text("".join(json.dumps({"updates": n, "env_frames": 2 * n}) + "\n" for n in (1, 2, 3)))
    drop_later_rows(file, updates=2)
    assert updates_in(file) == [1, 2]
    drop_later_rows(file, updates=2, interrupted_at=4)
    assert updates_in(file) == [1]
