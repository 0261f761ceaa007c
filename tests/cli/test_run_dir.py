"""Run directories: each belongs to one run and is used by one process at a time."""

import os
from pathlib import Path

import pytest

from dqs_lightning.cli import run_dir
from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.run_dir import RunDir


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(run_dir.VARIABLE, raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def claimed(path: str | None, ckpt_path: str | None = None) -> RunDir:
    found = RunDir(path, ckpt_path, "walker-walk", "dqs")
    found.claim()
    return found


def finish(folder: RunDir) -> Path:
    """Writes the files of a finished run and releases its folder."""
    (folder.path / "checkpoints").mkdir()
    (folder.path / "checkpoints" / "last.ckpt").touch()
    (folder.path / "config.yaml").touch()
    folder.release()
    return folder.path


def test_runs_that_start_in_the_same_second_have_folders_of_their_own() -> None:
    folders = [claimed(None) for _ in range(4)]
    assert len({folder.path for folder in folders}) == 4
    assert all(folder.path.parent == Path("runs/walker-walk/dqs") for folder in folders)


def test_a_second_start_in_the_same_folder_is_refused_while_it_is_in_use() -> None:
    first = claimed("r", "auto")
    with pytest.raises(InputError, match=f"--run_dir=r: is in use by process {os.getpid()}"):
        claimed("r", "auto")
    first.release()
    claimed("r", "auto")


def test_the_lock_of_a_killed_process_is_ignored() -> None:
    Path("r").mkdir()
    Path("r/.lock").write_text("1\n")
    assert claimed("r", "auto").path == Path("r")


def test_no_command_overwrites_a_run() -> None:
    old, other = finish(claimed("old")), finish(claimed("other"))
    for ckpt_path in (None, str(other / "checkpoints" / "last.ckpt")):
        with pytest.raises(InputError, match="--run_dir=old: holds a run; continue it with --ckpt_path=auto"):
            RunDir("old", ckpt_path, "walker-walk", "dqs")
    last = old / "checkpoints" / "last.ckpt"
    for ckpt_path in ("auto", str(last), str(last.resolve())):
        assert RunDir("old", ckpt_path, "walker-walk", "dqs").ckpt_path.samefile(last)


def test_a_run_may_start_from_another_runs_checkpoint_in_a_folder_of_its_own() -> None:
    last = finish(claimed("old")) / "checkpoints" / "last.ckpt"
    found = claimed("new", str(last))
    assert (found.path, found.ckpt_path) == (Path("new"), last)


def test_auto_continues_the_newest_run_of_the_task() -> None:
    assert claimed(None, "auto").ckpt_path is None
    newest = [finish(claimed(None)) for _ in range(2)][1]
    os.utime(newest / "checkpoints" / "last.ckpt", (2e9, 2e9))
    assert claimed(None, "auto").path == newest


def test_a_run_that_was_stopped_before_its_first_checkpoint_is_started_again() -> None:
    first = claimed("r", "auto")
    (first.path / "config.yaml").touch()
    first.release()
    assert claimed("r", "auto").ckpt_path is None


@pytest.mark.parametrize("path", ["file", "file/below", "x" * 300, "/proc/no"])
def test_an_unusable_folder_is_refused(path: str) -> None:
    Path("file").touch()
    with pytest.raises(InputError, match=r"--run_dir=.*: cannot be used: \w+"):
        claimed(path)
    assert os.listdir() == ["file"]


def test_a_default_folder_that_cannot_be_made_is_refused() -> None:
    Path("runs").touch()
    with pytest.raises(InputError, match=r"--run_dir=runs/walker-walk/dqs/.*: cannot be used: Not a directory"):
        claimed(None)


def test_discarding_removes_what_was_created_and_nothing_else() -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("kept")
    found = claimed("mine/a/b")
    (found.path / "config.yaml").touch()
    found.discard()
    assert sorted(map(str, Path("mine").rglob("*"))) == ["mine/notes.txt"]
    found = claimed("mine")
    (found.path / "config.yaml").touch()
    found.discard()
    assert Path("mine/notes.txt").read_text() == "kept" and not Path("mine/config.yaml").exists()


def test_other_ranks_use_the_folder_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run in the same process has a folder of its own."""
    first = claimed(None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    other = claimed(None)
    assert other.path == first.path and not other.owned
    other.release()
    monkeypatch.delenv("LOCAL_RANK")
    assert claimed(None).path != first.path


def test_temporary_files_of_killed_processes_are_removed() -> None:
    path = finish(claimed("r"))
    orphans = [path / "checkpoints" / ".last.ckpt.123.tmp", path / ".config.yaml.99.tmp"]
    for orphan in orphans:
        orphan.touch()
    claimed("r", "auto")
    assert not any(orphan.exists() for orphan in orphans)
    assert (path / "checkpoints" / "last.ckpt").exists()
