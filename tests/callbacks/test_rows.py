"""Files of measurements."""

import json
from pathlib import Path

import pytest

from dqs_callbacks.rows import Rows, drop_later_rows


def row(updates: int) -> dict[str, int]:
    return {"updates": updates, "env_frames": 2 * updates}


def test_rows_that_a_full_disk_refuses_are_written_later(tmp_path: Path) -> None:
    file, rows = tmp_path / "scores.jsonl", Rows()
    file.symlink_to("/dev/full")
    with pytest.warns(UserWarning, match=r"scores.jsonl: cannot be written .*kept for the next attempt"):
        rows.append(file, row(1))
    file.unlink()
    rows.append(file, row(2))
    assert [json.loads(line) for line in file.read_text().splitlines()] == [row(1), row(2)]


def test_what_came_after_the_checkpoint_is_dropped(tmp_path: Path) -> None:
    file, rows = tmp_path / "scores.jsonl", Rows()
    for updates in (1, 2, 3):
        rows.append(file, row(updates))
    drop_later_rows(file, updates=2)
    assert len(file.read_text().splitlines()) == 2
    drop_later_rows(file, updates=2, interrupted_at=4)
    assert [json.loads(line) for line in file.read_text().splitlines()] == [row(1)]
