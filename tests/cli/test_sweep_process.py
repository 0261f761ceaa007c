from pathlib import Path

import pytest

from dqs_lightning.cli.sweep_process import contents, execute, write


@pytest.mark.parametrize("shared", [True, False])
def test_the_files_of_a_run_are_returned_where_the_sweep_cannot_read_its_folder(tmp_path: Path, shared: bool) -> None:
    sweep, folder = tmp_path / "sweep", tmp_path / "sweep" / "seed=0"
    sweep.mkdir()
    if shared:
        (sweep / "manifest.json").write_text("{}")
    found = execute(["dqs-fit", "--list"], folder, sweep / ".stop", tmp_path, threads=1, gpu=False)
    assert found.exit_code == 0 and not found.continued
    assert found.files == ({} if shared else {"log.txt": (folder / "log.txt").read_bytes()})
    assert b"$ dqs-fit --list\n" in (folder / "log.txt").read_bytes()


def test_a_folder_is_written_as_it_was_read(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "scores.jsonl").write_text("{}\n")
    (tmp_path / "run" / "checkpoints" / "last.ckpt").write_bytes(bytes(range(256)))
    found = contents(tmp_path / "run")
    assert sorted(found) == ["checkpoints/last.ckpt", "scores.jsonl"]
    write(found, tmp_path / "copy")
    assert contents(tmp_path / "copy") == found
