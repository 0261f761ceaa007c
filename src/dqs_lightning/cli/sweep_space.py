"""Reads the `search` section of a sweep file: parameters, trials, objective and pruning. Requires no Optuna."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeAlias

from dqs_lightning.cli.errors import InputError, did_you_mean, shown

Value: TypeAlias = "int | float | str"
"""Value of a parameter; one of several choices is text, as an option of dqs-fit has it."""
OBJECTIVES = ("final", "mean")
"""What a trial's value is: the return of the last evaluation, or the mean return of all evaluations."""
MAX_TRIALS = 10_000
MAX_SEED = 2**32 - 1
MAX_NUMBER = 2**53
"""Whole numbers up to here are floats too."""
_KEYS = ("parameters", "trials", "objective", "prune", "random_trials", "seed")
_PRUNE_KEYS = ("startup_trials", "warmup_frames")
_RANGE_KEYS = ("low", "high", "log", "step", "choices")
_NAME = re.compile(r"[A-Za-z_][\w.]*")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole numbers if both are."""

    low: int | float
    high: int | float
    log: bool = False  # uniform in the logarithm
    step: int | float | None = None

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def tried(self) -> tuple[Value, ...]:
        """Values that dqs-fit must accept before the search starts."""
        return (self.low, self.high)

    def contains(self, value: Any) -> bool:
        kind = type(value) is int if self.whole else type(value) in (int, float)
        return kind and bool(self.low <= value <= self.high)

    def __str__(self) -> str:
        kind = "whole numbers, " if self.whole else ""
        step = f", step {self.step}" if self.step is not None else ""
        return f"{kind}{self.low} to {self.high}{', log' if self.log else ''}{step}"


@dataclass(frozen=True)
class Choices:
    """One of several values, each as the text of an option."""

    texts: tuple[str, ...]

    @property
    def tried(self) -> tuple[Value, ...]:
        """Values that dqs-fit must accept before the search starts."""
        return self.texts

    def contains(self, value: Any) -> bool:
        return value in self.texts

    def __str__(self) -> str:
        return f"one of {', '.join(self.texts)}"


Space: TypeAlias = "dict[str, Range | Choices]"


@dataclass(frozen=True)
class Prune:
    """The median rule: a trial is stopped if its best return so far is below the median at the same frames."""

    startup_trials: int = 5  # finished trials before the first one is stopped
    warmup_frames: int = 0  # frames before which no trial is stopped


@dataclass(frozen=True)
class SearchSettings:
    """The `search` section of a sweep file."""

    space: Space = field(default_factory=dict)
    trials: int = 20
    objective: str = "final"
    prune: Prune | None = None
    random_trials: int = 10  # finished trials before suggestions depend on returns
    seed: int = 0

    def attempts(self) -> Iterator[dict[str, Value]]:
        """Yields parameters to try before a search: each end and choice, with the others at their first value."""
        first = {name: options.tried[0] for name, options in self.space.items()}
        yield first
        for name, options in self.space.items():
            yield from ({**first, name: value} for value in options.tried[1:])


def overrides_of(parameters: Mapping[str, Value]) -> list[str]:
    """Returns parameters as overrides of a sweep file."""
    return [f"{name}={_text(value)}" for name, value in parameters.items()]


def read_search(content: Any, reserved: tuple[str, ...], overrides: list[str]) -> SearchSettings:
    """Checks the `search` section of a sweep file.

    Args:
        content: the section.
        reserved: options that cannot be parameters.
        overrides: those of the sweep file, which cannot set a parameter too.
    """
    _check_keys("search", content, _KEYS, required=("parameters",))
    settings: dict[str, Any] = {"space": _space(content["parameters"])}
    fixed = {override.partition("=")[0].rstrip("+") for override in overrides}
    for name in settings["space"]:
        if name in reserved:
            raise InputError(f"search.parameters.{name}: a sweep may not set {', '.join(reserved)}")
        if name in fixed:
            raise InputError(f"search.parameters.{name}: is in overrides too; it must be in one of the two")
    for key, least, most in (("trials", 1, MAX_TRIALS), ("random_trials", 0, MAX_TRIALS), ("seed", 0, MAX_SEED)):
        if key in content:
            settings[key] = _whole(f"search.{key}", content[key], least, most)
    if (objective := content.get("objective", "final")) not in OBJECTIVES:
        raise InputError(f"search.objective={shown(objective)}: must be one of {', '.join(OBJECTIVES)}")
    return SearchSettings(objective=objective, prune=_prune(content.get("prune", False)), **settings)


def _prune(content: Any) -> Prune | None:
    if isinstance(content, bool):
        return Prune() if content else None
    if not isinstance(content, dict):
        raise InputError(f"search.prune={shown(content)}: must be true, false, or keys {', '.join(_PRUNE_KEYS)}")
    _check_keys("search.prune", content, _PRUNE_KEYS)
    most = {"startup_trials": (1, MAX_TRIALS), "warmup_frames": (0, MAX_NUMBER)}
    return Prune(**{key: _whole(f"search.prune.{key}", value, *most[key]) for key, value in content.items()})


def _space(content: Any) -> Space:
    if not isinstance(content, dict) or not content:
        raise InputError(f"search.parameters={shown(content)}: must be one or more of NAME: RANGE")
    space: Space = {}
    for name, options in content.items():
        key = f"search.parameters.{name}"
        if not _NAME.fullmatch(name):
            raise InputError(f"{key}: must be an option of dqs-fit without dashes, such as model.critic_lr")
        if not isinstance(options, dict):
            raise InputError(f"{key}={shown(options)}: must be {{low: A, high: B}} or {{choices: [A, B]}}")
        _check_keys(key, options, _RANGE_KEYS)
        space[name] = _choices(key, options) if "choices" in options else _range(key, options)
    return space


def _choices(key: str, options: dict[str, Any]) -> Choices:
    if len(options) > 1:
        raise InputError(f"{key}: has choices and {next(k for k in options if k != 'choices')}; must be one of the two")
    choices = options["choices"]
    if not isinstance(choices, list) or not choices:
        raise InputError(f"{key}.choices={shown(choices)}: must be a list of one or more values")
    texts = tuple(_text(choice) for choice in choices)
    if twice := [text for text in texts if texts.count(text) > 1]:
        raise InputError(f"{key}.choices: {shown(twice[0])} is given twice")
    return Choices(texts)


def _range(key: str, options: dict[str, Any]) -> Range:
    for end in ("low", "high"):
        if end not in options:
            raise InputError(f"{key}.{end}: must be there, or choices")
        _number(f"{key}.{end}", options[end])
    low, high, log, step = options["low"], options["high"], options.get("log", False), options.get("step")
    if not low < high:
        raise InputError(f"{key}: low={low} must be < high={high}")
    if type(low) is not type(high):
        low, high = float(low), float(high)
    if not isinstance(log, bool):
        raise InputError(f"{key}.log={shown(log)}: must be true or false")
    if log and low <= 0:
        raise InputError(f"{key}.low={low}: must be > 0 where log is true")
    if step is not None:
        _number(f"{key}.step", step)
        if log:
            raise InputError(f"{key}.step={step}: must be left out where log is true")
        if isinstance(low, int) and not isinstance(step, int):
            raise InputError(f"{key}.step={step}: must be a whole number, as low and high are")
        if step <= 0 or (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step)):
            raise InputError(f"{key}.step={step}: must be > 0 and divide high - low")
    return Range(low, high, log, step)


def _check_keys(key: str, content: Any, allowed: tuple[str, ...], required: tuple[str, ...] = ()) -> None:
    if not isinstance(content, dict):
        raise InputError(f"{key}={shown(content)}: must hold {', '.join(allowed)}")
    for name in content:
        if name not in allowed:
            hint = did_you_mean(name, allowed)
            raise InputError(f"{key}.{name}: no such key; allowed are {', '.join(allowed)}{hint}")
    for name in required:
        if name not in content:
            raise InputError(f"{key}.{name}: must be there")


def _number(key: str, value: Any) -> None:
    if type(value) not in (int, float) or not abs(value) <= MAX_NUMBER:  # also not a number
        raise InputError(f"{key}={shown(value)}: must be a number from -2^53 to 2^53")


def _whole(key: str, value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise InputError(f"{key}={shown(value)}: must be a whole number from {least} to {most}")
    return value


def _text(value: Any) -> str:
    """Returns a value as the text of an option of dqs-fit."""
    return value if isinstance(value, str) else json.dumps(value)
