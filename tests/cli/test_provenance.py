"""The metadata of a run in run.json, and the entries that are added when the run continues."""

import json
from pathlib import Path
from typing import Any

import pytest

from dqs_lightning.cli import provenance
from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.provenance import about, merged, read_run, write_run

FACTS: dict[str, Any] = {
    "task": "maze", "method": "dqs", "seed": 1, "action_repeat": 1, "total_frames": 9, "settings": {"data": {"a": 1}},
}  # fmt: skip


def test_each_start_adds_an_entry_with_what_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"command": ["dqs-fit", "a"], "commit": "1", "torch": "2"}
    monkeypatch.setattr(provenance, "about", lambda *program: dict(now))
    for change in ({}, {"torch": "3"}, {}, {"torch": "2", "commit": None}):
        now |= change
        write_run(tmp_path, **FACTS)
    starts = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert [{key: start[key] for key in start if key != "time"} for start in starts] == [
        {"command": ["dqs-fit", "a"], "commit": "1", "torch": "2"}, {"torch": "3"}, {}, {"torch": "2", "commit": None},
    ]  # fmt: skip
    assert merged(starts) == {**now, "time": starts[-1]["time"]}
    assert read_run(tmp_path) == {**FACTS, "starts": starts}


@pytest.mark.parametrize("content", ["", "[", "[]", "{}", json.dumps({**FACTS, "starts": [1]})])
def test_a_damaged_file_is_refused_and_kept(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run\.json: not (valid JSON|what dqs-fit writes)"):
        write_run(tmp_path, **FACTS)
    assert (tmp_path / "run.json").read_text() == content


def test_the_command_and_versions_of_this_process_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks/speed/update.py", "--brief"])
    assert about()["command"] == ["python", "benchmarks/speed/update.py", "--brief"]
    found = about("dqs-fit")
    assert found["command"] == ["dqs-fit", "--brief"] and {"commit", "python", "torch", "machine", "cpus"} <= set(found)
