"""Exit codes of the commands, and how the errors of a command become messages."""

import errno
import functools
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ParamSpec

from dqs_lightning.registry import nearest
from dqs_lightning.sharing.text import printable

DONE, BAD_INPUT, DIVERGED, ENVIRONMENT_FAILED, NOT_SAVED, RANK_LOST, STOPPED = 0, 2, 3, 4, 5, 6, 75
"""Exit codes. A run that ended with one from ENVIRONMENT_FAILED on is continued by the same command."""

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
    """Decorates a command's `main`: prints expected errors in a few lines on standard error and returns the exit code.

    Expected are the exceptions of `_EXPECTED`, and errors of files or folders that the command line names. Any other
    exception is a bug of the program and keeps its traceback. `prog` is the command's name.
    """

    def decorate(main: Callable[P, int]) -> Callable[P, int]:
        @functools.wraps(main)
        def command(*args: P.args, **kwargs: P.kwargs) -> int:
            try:
                return main(*args, **kwargs)
            except Exception as error:
                arguments = next((list(given) for given in args if isinstance(given, list | tuple)), sys.argv[1:])
                if (found := _expected(error, arguments)) is None:
                    raise
                print(f"{prog}: {short(found[1])}", file=sys.stderr)
                return found[0]

        return command

    return decorate


def _expected(error: Exception, arguments: Sequence[str]) -> tuple[int, str] | None:
    """Returns the exit code and the message of an expected error; None for any other."""
    for module, name, code, before in _EXPECTED:
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(error, kind):
            return code, before + str(error)
    if isinstance(error, OSError) and error.errno in _FILE_ERRORS and error.filename is not None:
        file = os.fsdecode(error.filename)
        if any(_names(argument, file) for argument in arguments):
            return BAD_INPUT, f"{file}: {error.strerror}"
    return None


def print_all(text: str) -> None:
    """Prints a text. A reader that ends early, such as head, causes no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def short(message: str) -> str:
    """Returns at most MAX_LINES lines of printable characters; a line that is too long loses its middle."""
    lines = [printable(line.rstrip(), longest=None) for line in message.split("\n") if line.strip()][:MAX_LINES]
    return "\n".join(
        line if len(line) <= MAX_LINE_CHARACTERS else f"{line[: MAX_LINE_CHARACTERS - 103]}...{line[-100:]}"
        for line in lines
    )


class refusing:
    """Context manager that raises an `InputError` in place of errors of some kinds: a prefix, and the error's message.

    An `InputError` passes through, unless it is one of the kinds.
    """

    def __init__(self, prefix: str, *kinds: type[Exception]) -> None:
        self.prefix, self.kinds = prefix, kinds

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, InputError) and InputError in self.kinds:
            raise InputError(f"{self.prefix}{error}") from error
        if isinstance(error, self.kinds) and not isinstance(error, InputError):
            text = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            raise InputError(self.prefix + printable(" ".join(text.split()), longest=None)) from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns the line of a message that suggests a similar name; empty where there is none."""
    near = nearest(name, known)
    return f"\nDid you mean {near}?" if near else ""


def shown(value: object, most: int = 100) -> str:
    """Returns a value as a message shows it: null for None, in one line of at most `most` characters."""
    plain = isinstance(value, str) and value.isprintable() and value.strip()
    text = "null" if value is None else str(value) if plain else repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _names(argument: str, file: str) -> bool:
    """Whether a command-line argument names a file, or a folder above it."""
    value = argument.partition("=")[2] if argument.startswith("-") else argument
    return bool(value) and Path(os.path.abspath(file)).is_relative_to(os.path.abspath(value))
