"""Reads files that may hold anything, and checks folders to write in; each fault is an `InputError` that names it."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from dqs_lightning.checkpoint.bounded import check_bounded
from dqs_lightning.cli.errors import InputError, refusing

MAX_BYTES = 512 * 2**20
"""Largest size of a text, such as the metrics of a long run."""


def read_text(file: Path, most: int = MAX_BYTES) -> str:
    """Returns the content of a regular file of UTF-8 text of at most so many bytes."""
    with refusing(f"{file}: cannot be read: ", OSError), refusing(f"{file}: must be UTF-8 text: ", UnicodeDecodeError):
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for its writer
            raise InputError(f"{file}: must be a regular file")
        if status.st_size > most:
            raise InputError(f"{file}: has {status.st_size:,} bytes; must be at most {most:,}")
        return file.read_text(encoding="utf-8-sig")


def read_json(file: Path) -> Any:
    """Returns the value in a file of JSON of bounded size and depth."""
    text = read_text(file)
    with refusing(f"{file}: not valid JSON: ", ValueError, RecursionError):
        content = json.loads(text)
        check_bounded(content)
    return content


def existing_folder(option: str, folder: Path) -> Path:
    """Returns the deepest existing folder of a path in which the rest of it can be created.

    An error's message begins with `option`, which names the option and its value.
    """
    with refusing(f"{option}: ", OSError):
        there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
        if not there.is_dir():
            raise InputError(f"{option}: {there} is not a folder")
        if any(len(os.fsencode(part)) > os.pathconf(there, "PC_NAME_MAX") for part in folder.parts):
            raise InputError(f"{option}: a part of the path is too long")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{option}: {there} is not writable")
    return there
