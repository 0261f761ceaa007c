"""What a controller of an environment must know beside the policy: parts of the observation, bounds, and period."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple


class Part(NamedTuple):
    """A named part of the flat observation, of so many numbers."""

    name: str
    size: int


@dataclass(frozen=True)
class Interface:
    """Describes an environment's observation, action and time.

    Attributes:
        observation: parts of the flat observation, in its order; empty where they have no names.
        action_low: the environment's own value of each dimension to which -1 is mapped; empty: -1 itself.
        action_high: likewise, to which 1 is mapped.
        control_period_s: seconds between two actions; None where it is unknown.
        modules: top-level modules that define the environment.
    """

    observation: tuple[Part, ...] = ()
    action_low: tuple[float, ...] = ()
    action_high: tuple[float, ...] = ()
    control_period_s: float | None = None
    modules: tuple[str, ...] = ()


def period(frame_s: Any, action_repeat: int) -> float | None:
    """Returns the seconds of `action_repeat` frames; None where a frame's are no positive number."""
    try:
        seconds = float(frame_s) * action_repeat
    except (TypeError, ValueError):
        return None
    # Seven digits are those of a simulator's float32.
    return float(f"{seconds:.7g}") if math.isfinite(seconds) and seconds > 0 else None


def top_modules(cls: type) -> tuple[str, ...]:
    """Returns the top-level modules of a class and its bases, without Python's own."""
    names = (base.__module__.partition(".")[0] for base in cls.__mro__)
    return tuple(dict.fromkeys(name for name in names if name not in ("abc", "builtins", "typing")))
