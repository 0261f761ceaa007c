"""Sweeps with arbitrary file contents: the manifest is refused or read, and control characters are not printed."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.sweep_manifest import Manifest, Record, View
from dqs_lightning.cli.sweep_plan import Run

NAME = "pole/dqs/seed=0"
RECORD = asdict(
    Record(["dqs-fit"], ["--seed_everything=0"], "d", "running", "2026-01-01T00:00:00+00:00", 3.5, None, "")
)
numbers = st.integers() | st.floats() | st.just(10**400)
plain = st.none() | st.booleans() | numbers | st.text(max_size=10)
keys = st.text(max_size=5)
arbitrary = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=5
)
EACH = settings(
    max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def run() -> Run:
    return Run(NAME, Path("pole.yaml"), "d", ("--seed_everything=0",), Path("out").absolute() / NAME)


def shown(view: View) -> str:
    """Returns the output of a view for a terminal and for a log."""
    view.console = Console(width=300, force_terminal=False, record=True)
    with view.console.capture() as captured:
        view._shown = {NAME: "pending"}
        view.print_changes()
        view.console.print(view.table())
    return captured.get()


@EACH
@given(key=st.sampled_from(sorted(RECORD)), value=arbitrary)
def test_a_manifest_record_with_arbitrary_values_is_refused_or_shown(here: Path, key: str, value: Any) -> None:
    (run().folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run().folder / "checkpoints" / "last.ckpt").touch()
    Path("out/manifest.json").write_text(json.dumps({"runs": {NAME: {**RECORD, key: value}}}))
    try:
        manifest = Manifest(Path("out"), [run()])
    except InputError as error:
        assert len(str(error).splitlines()) <= 4
        return
    assert NAME in shown(View([run()], manifest))


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"[" * 100_000, b"null", b"[]", b'{"runs": 5}', b'{"runs": {"a": 1}}', b'{"runs": {"a": {}}}',
     b'{"runs": {}, "trials": [1]}', b'{"runs": {}, "trials": [{"parameters": {}}]}', b'{"runs": {}, "sweep": 3}',
     json.dumps({"runs": {"a": {**RECORD, "state": "lost"}}}).encode(), b"9" * 10_000],
    ids=range(13),
)  # fmt: skip
def test_a_manifest_with_other_content_is_refused(here: Path, content: bytes) -> None:
    Path("out").mkdir()
    Path("out/manifest.json").write_bytes(content)
    with pytest.raises(InputError, match=r"out/manifest.json: not a manifest of dqs-sweep; move it away"):
        Manifest(Path("out"), [run()])


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop"])
def test_a_manifest_that_is_not_a_regular_file_is_refused(here: Path, kind: str) -> None:
    file = Path("out/manifest.json")
    file.parent.mkdir()
    {"folder": file.mkdir, "pipe": lambda: os.mkfifo(file), "loop": lambda: file.symlink_to(file.absolute())}[kind]()
    with pytest.raises(InputError, match=r"out/manifest.json: not a manifest of dqs-sweep"):
        Manifest(Path("out"), [run()])


CONTENTS: dict[str, bytes] = {
    "whole": b'{"env_frames": 1000, "return_mean": 5}\n',
    "nothing": b"",
    "binary": bytes(range(256)),
    "list": b"[]",
    "text": b'{"env_frames": "\\u001b[2J", "return_mean": "x"}',
    "lists": b'{"env_frames": [1], "return_mean": {}}',
    "deep": b"[" * 100_000,
    "huge": b'{"env_frames": 1e308, "return_mean": 1e308}',
    "digits": b'{"total_frames": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("file", ["scores.jsonl", "run.json"])
def test_run_files_with_arbitrary_content_do_not_break_the_view(here: Path, file: str, content: bytes) -> None:
    run().folder.mkdir(parents=True)
    (run().folder / file).write_bytes(content)
    manifest = Manifest(Path("out"), [run()])
    manifest.started(run())
    text = shown(View([run()], manifest))
    assert "\x1b" not in text and len(text) < 2000
    assert ("1,000/-" in text) == (file == "scores.jsonl" and content == CONTENTS["whole"])


def test_control_characters_in_the_last_message_of_a_run_are_escaped(here: Path) -> None:
    run().folder.mkdir(parents=True)
    (run().folder / "log.txt").write_text("$ dqs-fit\ndqs-fit: \x1b[2J\x1b]0;title\x07 [bold]" + "x" * 5000 + "\n")
    manifest = Manifest(Path("out"), [run()])
    manifest.started(run())
    manifest.ended(run(), 2, 1.0, asked=False)
    text = shown(View([run()], manifest))
    assert "\x1b" not in text and "\x07" not in text and "dqs-fit: \\x1b[2J" in text and "[bold]" in text
    assert len(text) < 3000


def test_the_settings_of_another_run_are_shown_as_one_line(here: Path) -> None:
    (run().folder / "checkpoints").mkdir(parents=True)
    (run().folder / "checkpoints" / "last.ckpt").touch()
    record = {**RECORD, "settings": ["--a=\x1b[2J\n"]}
    Path("out/manifest.json").write_text(json.dumps({"runs": {NAME: record}}))
    with pytest.raises(InputError, match=r"was --a=\\x1b\[2J\\n\nis --seed_everything=0"):
        Manifest(Path("out"), [run()])
