"""Texts from files, such as names of runs, made harmless for a terminal, Markdown and pictures."""

import html
import re
from typing import Any

LONGEST = 200
"""Characters of a text that are shown."""

_MARKDOWN = re.compile(r"[\\`*~|$\[\]]|(?<!\w)_|_(?!\w)")


def printable(value: Any, longest: int | None = LONGEST) -> str:
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


def markdown(text: str) -> str:
    """Returns a text that Markdown shows as it is: no HTML, links, emphasis, code, mathematics or table cells."""
    return html.escape(_MARKDOWN.sub(r"\\\g<0>", text), quote=False)


def drawable(text: str, longest: int = 60) -> str:
    """Returns a text that Matplotlib draws as it is: no mathematics, and no name that a legend would leave out."""
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    return (" " if cut.startswith("_") else "") + cut.replace("$", r"\$")
