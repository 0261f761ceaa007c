"""Files that are whole at any time, however a write ends."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

TEMPORARY = re.compile(r"\.(?P<name>.+)\.\d+\.tmp")


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file that replaces `path` once it is whole and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w+b") as file:  # with the permissions that the umask leaves
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def atomic_write(content: bytes, path: Path) -> None:
    """Replace a file by new content so that it is whole at any time."""
    with atomic_file(path) as file:
        file.write(content)


def append_lines(text: str, path: Path) -> None:
    """Add whole lines to a file; where that fails, as on a full disk, the file is as it was."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", newline="") as file:
            file.write(text)
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, size)
        raise


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary files that killed processes left; no other process may be writing into the folder."""
    for file in folder.glob(".*.tmp"):
        if TEMPORARY.fullmatch(file.name):
            with contextlib.suppress(OSError):
                file.unlink()
