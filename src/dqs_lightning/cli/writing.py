"""Places where a command will write, checked before any work starts."""

import os
from pathlib import Path

from dqs_lightning.cli.errors import InputError


def existing_folder(option: str, folder: Path) -> Path:
    """Return the deepest existing folder of a path in which the rest of it can be created.

    Args:
        option: the option and its value, which the error begins with.
        folder: in which files are to be written; it may not exist yet.

    Raises:
        InputError: when a part of the path is a file, is too long, or is not writable.
    """
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
        if not there.is_dir():
            raise InputError(f"{option}: {there} is not a folder")
        if any(len(os.fsencode(part)) > os.pathconf(there, "PC_NAME_MAX") for part in folder.parts):
            raise InputError(f"{option}: a part of the path is too long")
    except OSError as error:
        raise InputError(f"{option}: {error.strerror or error}") from error
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{option}: {there} is not writable")
    return there
