"""Reads text and JSON from files that may hold anything; each fault is an `InputError` that names the file."""

import json
import stat
from pathlib import Path
from typing import Any

from dqs_lightning.checkpoint.bounded import check_bounded
from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.escape import printable

MAX_BYTES = 512 * 2**20
"""Largest size of a text, such as the metrics of a long run."""


def read_text(file: Path, most: int = MAX_BYTES) -> str:
    """Returns the content of a regular file of UTF-8 text of at most so many bytes.

    Raises:
        InputError: when it is something else, such as a folder, a pipe or binary data, or cannot be read.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for its writer
            raise InputError(f"{file}: must be a regular file")
        if status.st_size > most:
            raise InputError(f"{file}: has {status.st_size:,} bytes; must be at most {most:,}")
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file}: must be UTF-8 text; byte {error.start} is {error.object[error.start]:#04x}"
        ) from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error


def read_json(file: Path) -> Any:
    """Returns the value in a file of JSON.

    Raises:
        InputError: when the file cannot be read or is not JSON.
    """
    text = read_text(file)
    try:
        content = json.loads(text)
        check_bounded(content)
    except RecursionError as error:
        raise InputError(f"{file}: nested too deeply") from error
    except ValueError as error:
        raise InputError(f"{file}: not valid JSON: {printable(error)}") from error
    return content
