"""Reads text and JSON from files that may hold anything; each fault is an `InputError` that names the file."""

import json
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
