"""Checks the folder in which a command will write, before any work starts."""

import os
from pathlib import Path

from dqs_lightning.cli.errors import InputError, refusing


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
