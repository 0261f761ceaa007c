"""Exit codes of the commands, and the one place in which a command's errors become messages."""

import errno
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec

DONE, BAD_INPUT, DIVERGED, ENVIRONMENT_FAILED, NOT_SAVED, STOPPED = 0, 2, 3, 4, 5, 75
"""Exit codes. A run that ended with ENVIRONMENT_FAILED, NOT_SAVED or STOPPED is continued by the same command."""

MAX_LINES = 5
"""Lines of a message."""

MAX_LINE_CHARACTERS = 500
"""Characters of a message's line."""

_EXPECTED = (
    ("dqs_lightning.cli.errors", "InputError", BAD_INPUT, ""),
    ("dqs_lightning.checkpoint.archive", "CheckpointError", BAD_INPUT, ""),
    ("lightning.fabric.utilities.exceptions", "MisconfigurationException", BAD_INPUT, ""),
    ("omegaconf.errors", "OmegaConfBaseException", BAD_INPUT, ""),
    ("yaml", "YAMLError", BAD_INPUT, ""),
    ("dqs_lightning.checkpoint.archive", "NotSavedError", NOT_SAVED, ""),
    ("dqs_lightning.finite", "NonFiniteError", DIVERGED, "diverged: "),
    ("dqs_lightning.envs", "EnvironmentFailure", ENVIRONMENT_FAILED, ""),
)
"""Module, exception, exit code, and what is put before its message. A module that was never imported raised nothing."""

_FILE_ERRORS = {
    errno.EACCES, errno.EEXIST, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT,
    errno.ENOTDIR, errno.EPERM, errno.EROFS,
}  # fmt: skip
"""Error numbers that concern a file named by the user; a full disk is not one of them."""

P = ParamSpec("P")


class InputError(ValueError):
    """Input that is refused before any work starts; its text is what the user sees."""


def reported(prog: str) -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Decorator of a command's `main`: prints expected errors in a few lines on standard error.

    Expected are the exceptions of `_EXPECTED`, and errors of files or folders that the command line names. Any other
    exception is a fault of the program and keeps its traceback.

    Args:
        prog: the command's name, with which the message starts.
    """

    def decorate(main: Callable[P, int]) -> Callable[P, int]:
        @functools.wraps(main)
        def command(*args: P.args, **kwargs: P.kwargs) -> int:
            try:
                return main(*args, **kwargs)
            except Exception as error:
                arguments = next((list(given) for given in args if isinstance(given, list | tuple)), sys.argv[1:])
                found = expected(error, arguments)
                if found is None:
                    raise
                code, message = found
                print(f"{prog}: {message}", file=sys.stderr)
                return code

        return command

    return decorate


def expected(error: Exception, arguments: Sequence[str]) -> tuple[int, str] | None:
    """The exit code and the message of an expected error; None for any other.

    Args:
        error: what was raised.
        arguments: the command line's, among which a file's name is looked for.
    """
    for module, name, code, before in _EXPECTED:
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(error, kind):
            return code, before + short(str(error))
    if isinstance(error, OSError) and error.errno in _FILE_ERRORS and error.filename is not None:
        file = os.fsdecode(error.filename)
        if any(_names(argument, file) for argument in arguments):
            return BAD_INPUT, short(f"{file}: {error.strerror}")
    return None


def short(message: str) -> str:
    """A message of at most MAX_LINES lines, in which control characters are escaped."""
    lines = [line.rstrip() for line in message.split("\n") if line.strip()]
    lines = ["".join(c if c.isprintable() else repr(c)[1:-1] for c in line) for line in lines]
    return "\n".join(
        line if len(line) <= MAX_LINE_CHARACTERS else f"{line[: MAX_LINE_CHARACTERS - 3]}..."
        for line in lines[:MAX_LINES]
    )


def shown(value: object, most: int = 100) -> str:
    """A value as a message shows it: null for None, in one line of at most `most` characters."""
    plain = isinstance(value, str) and value.isprintable() and value.strip()
    text = "null" if value is None else str(value) if plain else repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _names(argument: str, file: str) -> bool:
    """Whether a command-line argument names a file, or a folder above it."""
    value = argument.partition("=")[2] if argument.startswith("-") else argument
    return bool(value) and Path(os.path.abspath(file)).is_relative_to(os.path.abspath(value))
