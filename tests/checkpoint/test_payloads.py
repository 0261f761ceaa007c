"""Tests that no file runs code, for any form of payload; `benchmarks/faults/payloads.py` tries every place."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import payload_files
import pytest
from payload_files import TARGETS, Target
from payloads import FORMS, MODULE, Form, ran

from dqs_lightning.checkpoint import restore


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of valid files from which the payload's module can be imported."""
    folder = tmp_path_factory.mktemp("place")
    payload_files.prepare(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.syspath_prepend(folder)
        patched.setattr(sys, "dont_write_bytecode", True)
        patched.setattr(restore, "_trusted", set())
        yield folder


@pytest.mark.parametrize("form", [form for form in FORMS if form.live], ids=lambda form: form.name)
def test_every_payload_runs_when_it_is_read_unsafely(form: Form, place: Path) -> None:
    content = form.make(place)
    assert not ran(place)
    try:
        form.live(content, place)  # type: ignore[misc]
    except Exception as error:  # it raises after the payload ran
        assert error is not None
    assert ran(place)


@pytest.mark.parametrize("target", [target for target in TARGETS if not target.slow], ids=lambda target: target.name)
def test_no_file_runs_code(target: Target, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each form is tried at one place, a different one for each form, or at all places for targets that are quick."""
    before = target.file.read_bytes() if target.file.exists() else None
    target.file.parent.mkdir(exist_ok=True)
    for number, form in enumerate(FORMS):
        contents = target.contents(form, place)
        if not contents:
            continue
        for content in contents if target.quick else [contents[number % len(contents)]]:
            target.file.write_bytes(content)
            code: Any = target.command()
            assert code in (0, 2, None), (form.name, code)
            assert not ran(place), form.name
    time.sleep(0.1)  # for a process that a payload started
    assert not ran(place)
    if before is None:
        target.file.unlink(missing_ok=True)
    else:
        target.file.write_bytes(before)
    printed = capsys.readouterr()
    assert "\x1b]0" not in printed.out + printed.err and "Traceback" not in printed.err
    assert os.getcwd() == str(place)


@pytest.mark.slow
def test_a_matplotlib_style_in_the_working_directory_runs_no_code(place: Path) -> None:
    """Matplotlib reads the file when it is imported, so the test starts new processes."""
    contents = payload_files.styles(f"{MODULE}.X")
    for content, code in ((b"".join(contents), 0), (FORMS[0].make(place), 2)):
        Path("matplotlibrc").write_bytes(content)
        assert payload_files.reported_by_a_process() == code and not ran(place)
    Path("matplotlibrc").unlink()
