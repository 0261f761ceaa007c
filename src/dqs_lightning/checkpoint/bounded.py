"""Limits on nested values from files: shared parts that expand without end, cycles, and depth."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

MAX_DEPTH = 40
"""Levels of containers in one file."""
MAX_VALUES = 500_000
"""Values of one file after every shared part has been written out."""
CHARACTERS_OF_A_VALUE = 64
"""A text counts as one value for each of so many characters."""


def check_bounded(value: Any, children: Callable[[Any], Iterable[Any]] | None = None, most: int = MAX_VALUES) -> None:
    """Refuse a nested value that would not fit once its shared parts (such as YAML's aliases) are written out.

    Args:
        value: the outermost one.
        children: of one value; None: items, keys and values of Python's containers.
        most: values that are allowed.

    Raises:
        ValueError: when it contains itself, is nested deeper than `MAX_DEPTH`, or has more values than `most`.
    """
    known: dict[int, tuple[int, int]] = {}
    inside = children or _items

    def measure(part: Any, depth: int) -> tuple[int, int]:
        """Number of values and height of a part."""
        if depth > MAX_DEPTH:  # a cycle ends here too
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        if id(part) not in known:
            text, height = getattr(part, "value", part), 0  # value: of a node of YAML
            size = 1 + (len(text) // CHARACTERS_OF_A_VALUE if isinstance(text, str | bytes) else 0)
            for child in inside(part):
                more, below = measure(child, depth + 1)
                size, height = size + more, max(height, below + 1)
            if size > most:
                raise ValueError(f"more than {most:,} values")
            known[id(part)] = (size, height)
        if depth + known[id(part)][1] > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        return known[id(part)]

    measure(value, 0)


def _items(part: Any) -> Iterable[Any]:
    if isinstance(part, Mapping):
        return [*part.keys(), *part.values()]
    return part if isinstance(part, list | tuple | set | frozenset) else ()
