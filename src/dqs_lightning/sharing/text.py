"""Texts of runs and environments as they may be published: without folders of a machine, and safe in Markdown."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

LONGEST = 2000
"""Characters of a line in Markdown."""
_ROOTS = ("runs", "configs", "benchmarks")
_ABSOLUTE = re.compile(r"(?<![\w.~:/-])/[^\"'=,\[\]]*")


def without_place(command: Sequence[Any]) -> str:
    """Return a command line in which absolute paths begin at runs/, configs/ or benchmarks/, or are the last name."""

    def shorter(found: re.Match[str]) -> str:
        parts = PurePosixPath(found[0]).parts[1:]
        start = next((index for index, part in enumerate(parts) if part in _ROOTS), len(parts) - 1)
        return "/".join(parts[max(start, 0) :])

    return " ".join(_ABSOLUTE.sub(shorter, str(word)) for word in command)


def printable(value: Any, longest: int | None = 200) -> str:
    """Returns a value, as `str` shows it, as one line of visible characters that can be printed anywhere.

    Control characters (among them those that move a terminal's cursor), line breaks, invisible and directional marks
    and lone surrogates become escapes such as \\x1b. Of a longer text `longest` characters are kept; None: all.
    """
    try:
        text = str(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or a list that contains itself
        text = f"<{type(value).__name__}>"
    if longest is not None and len(text) > longest:
        text = text[: longest - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def code(value: Any) -> str:
    """Returns a value as inline code of Markdown, also within a table."""
    text = printable(value, LONGEST).replace("|", "\\|")
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    edge = " " if text[:1] == "`" or text[-1:] == "`" or not text else ""
    return f"{ticks}{edge}{text}{edge}{ticks}"


def block(text: str, language: str = "") -> str:
    """Returns lines as a block of code of Markdown, which nothing in them can end."""
    lines = "\n".join(printable(line, LONGEST) for line in text.rstrip("\n").split("\n"))
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", lines)), default=0))
    return f"{fence}{language}\n{lines}\n{fence}"
