"""Ranges of numbers that constructors take. Each check returns the value, and refuses what is not finite."""

import math


def at_least(name: str, value: int, least: int) -> int:
    """The value, checked to be >= `least` and finite.

    Raises:
        ValueError: otherwise; it names the argument.
    """
    if not least <= value < math.inf:
        raise ValueError(f"{name}={value}: must be >= {least}")
    return value


def within(name: str, value: int, least: int, most: int) -> int:
    """The value, checked to be in [`least`, `most`].

    Raises:
        ValueError: otherwise; it names the argument.
    """
    if not least <= value <= most:
        raise ValueError(f"{name}={value}: must be {least} to {most}")
    return value


def positive(name: str, value: float) -> float:
    """The value, checked to be finite and > 0.

    Raises:
        ValueError: otherwise; it names the argument.
    """
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value}: must be a finite number > 0")
    return float(value)


def not_negative(name: str, value: float) -> float:
    """The value, checked to be finite and >= 0.

    Raises:
        ValueError: otherwise; it names the argument.
    """
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}={value}: must be a finite number >= 0")
    return float(value)


def finite(name: str, value: float) -> float:
    """The value, checked to be finite.

    Raises:
        ValueError: otherwise; it names the argument.
    """
    if not math.isfinite(value):
        raise ValueError(f"{name}={value}: must be a finite number")
    return float(value)


def all_positive(name: str, values: tuple[float, ...]) -> tuple[float, ...]:
    """The values, checked to be one or more, each finite and > 0.

    Raises:
        ValueError: otherwise; it names the argument.
    """
    if not values or not all(0 < value < math.inf for value in values):
        raise ValueError(f"{name}={list(values)}: must be one or more finite numbers > 0")
    return tuple(float(value) for value in values)
