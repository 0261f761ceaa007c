"""Tests that nested values which expand exponentially or contain themselves are refused quickly."""

from typing import Any

import pytest

from dqs_lightning.checkpoint.bounded import MAX_DEPTH, MAX_VALUES, check_bounded


def doubled(times: int) -> list[Any]:
    """Returns a list whose two entries are the same list of two entries, and so on: few objects, 2^times values."""
    value: list[Any] = [0]
    for _ in range(times):
        value = [value, value]
    return value


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def itself() -> list[Any]:
    value: list[Any] = []
    value.append({"key": value})
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (doubled(30), f"more than {MAX_VALUES:,} values"),
        (["x" * 10_000] * 10_000, f"more than {MAX_VALUES:,} values"),
        (nested(MAX_DEPTH + 1), f"deeper than {MAX_DEPTH} levels"),
        (itself(), f"deeper than {MAX_DEPTH} levels"),
        ([(shared := nested(MAX_DEPTH - 3)), [[[shared]]]], "deeper than"),
    ],
)
def test_values_that_expand_without_bound_are_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_bounded(value)


@pytest.mark.parametrize("value", [doubled(10), nested(MAX_DEPTH), {"a": [1, "x", None, {(1, 2): {3}}]}, 5, None])
def test_ordinary_values_pass(value: Any) -> None:
    check_bounded(value)
