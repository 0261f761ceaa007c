"""Declared ranges of constructor arguments: `Positive`, `Count` and others as types, checked by `@checked`.

@checked
def __init__(self, steps: Count = 10, tau: Share = 0.02) -> None: ...
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Concatenate, Literal, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

S = TypeVar("S")
P = ParamSpec("P")


@dataclass(frozen=True)
class Range:
    """An interval of finite numbers.

    Attributes:
        text: describes it in messages, after "must be".
        low: lower bound.
        high: upper bound.
        open_low: whether `low` itself is excluded.
        open_high: whether `high` itself is excluded.
    """

    text: str
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def contains(self, value: float) -> bool:
        """Whether a number is inside and finite."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and math.isfinite(value)


@dataclass(frozen=True)
class OneOf:
    """A choice of values, declared as a `Literal`; `text` as in `Range`."""

    text: str
    values: tuple[Any, ...]

    def contains(self, value: Any) -> bool:
        """Whether a value is one of them."""
        return value in self.values

    def member(self, value: Any) -> Any:
        """Returns the one that equals a value: True for 1."""
        return self.values[self.values.index(value)]


def at_least(least: int) -> Range:
    """The range of numbers >= `least`."""
    return Range(f">= {least}", low=least)


def within(least: int, most: int) -> Range:
    """The range of numbers from `least` to `most`."""
    return Range(f"{least} to {most}", least, most)


Finite = Annotated[float, Range("a finite number")]
Positive = Annotated[float, Range("a finite number > 0", low=0, open_low=True)]
NonNegative = Annotated[float, Range("a finite number >= 0", low=0)]
Fraction = Annotated[float, Range("in [0, 1]", 0, 1)]
Share = Annotated[float, Range("in (0, 1]", 0, 1, open_low=True)]
OpenShare = Annotated[float, Range("in (0, 1)", 0, 1, open_low=True, open_high=True)]
HalfOpenShare = Annotated[float, Range("in [0, 1)", 0, 1, open_high=True)]
Count = Annotated[int, at_least(1)]
CountOrZero = Annotated[int, at_least(0)]


def checked(init: Callable[Concatenate[S, P], None]) -> Callable[Concatenate[S, P], None]:
    """Decorator of a constructor: checks and converts the arguments whose type declares a `Range` or is a `Literal`.

    A range applies to each number of a (nested) sequence, which must not be empty; None is not checked.

    Raises:
        ValueError: for the first argument out of its range; the message has its name, its value and the range.
    """
    signature = inspect.signature(init)

    @functools.cache
    def ranges() -> dict[str, tuple[Callable[[Any], Any], Range | OneOf]]:
        hints = get_type_hints(init, include_extras=True)
        found = {name: _declared(hint) for name, hint in hints.items()}
        return {name: declared for name, declared in found.items() if declared is not None}

    @functools.wraps(init)
    def wrapper(self: S, /, *args: P.args, **kwargs: P.kwargs) -> None:
        bound = signature.bind(self, *args, **kwargs)
        for name, (kind, allowed) in ranges().items():
            if (value := bound.arguments.get(name)) is not None:
                bound.arguments[name] = check(name, value, allowed, kind)
        init(*bound.args, **bound.kwargs)

    return wrapper


def check(name: str, value: Any, allowed: Range | OneOf, kind: Callable[[Any], Any] = float) -> Any:
    """Returns a number, or a tuple of each number of a sequence, converted to `kind` and checked to be in a range.

    Raises:
        ValueError: naming the argument, its value and the range.
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not value:
            raise ValueError(f"{name}={list(value)}: must be one or more, each {allowed.text}")
        return tuple(check(name, item, allowed, kind) for item in value)
    if not allowed.contains(value):
        raise ValueError(f"{name}={value}: must be {allowed.text}")
    return kind(value)


def _declared(hint: Any) -> tuple[Callable[[Any], Any], Range | OneOf] | None:
    """Conversion and range in a hint such as `Positive | None`, `tuple[Positive, ...]` or `Literal["a", "b"]`."""
    if get_origin(hint) is Literal:
        values = get_args(hint)
        choice = OneOf(f"one of {', '.join(map(str, values))}", values)
        return choice.member, choice
    if metadata := getattr(hint, "__metadata__", ()):
        return next(((hint.__origin__, item) for item in metadata if isinstance(item, Range)), None)
    inside: Iterable[Any] = get_args(hint)
    return next((found for part in inside if (found := _declared(part)) is not None), None)
