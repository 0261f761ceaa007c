"""Numbers out of range: the checks themselves, and every float of every component that is shipped."""

import inspect
import math
import types
import typing
from typing import Any

import pytest

import dqs_callbacks  # noqa: F401  (its callbacks are components)
from dqs_lightning.cli.parser import BASES
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.diffusion import Importance
from dqs_lightning.envs import Maze
from dqs_lightning.ranges import all_positive, at_least, finite, not_negative, positive, within
from dqs_lightning.registry import components
from dqs_lightning.run.checkpoint import RunCheckpoint

NEEDED: dict[str, Any] = {
    "observation_dim": 3,
    "action_dim": 2,
    "environment": Maze(),
    "run": "run",
    "below": Importance(),
    "above": Importance(),
}
"""Arguments that have no default."""

INFINITE = {"MomentMatched.max_ratio"}
"""Settings for which infinity has a meaning."""


def classes() -> list[type]:
    found = {cls for base in BASES for cls in components(base).values() if cls.__module__.startswith("dqs_")}
    return sorted({*found, OnlineData, RunCheckpoint}, key=lambda cls: cls.__name__)


def admits(annotation: Any, kind: type) -> bool:
    return any(member is kind or admits(member, kind) for member in typing.get_args(annotation)) or annotation is kind


def settings(kind: type) -> list[tuple[type, str, Any]]:
    """Each argument of that number type, or of a list of it, of every class that is shipped."""
    return [
        (cls, name, annotation)
        for cls in classes()
        for name, annotation in typing.get_type_hints(cls.__init__).items()
        if name in inspect.signature(cls).parameters and admits(annotation, kind) and name not in NEEDED
    ]


def build(cls: type, name: str, annotation: Any, value: float) -> None:
    """Construct the class with one argument set, as deep in lists as its type is."""
    given: Any = value
    while not isinstance(annotation, type) or typing.get_origin(annotation):
        if isinstance(annotation, types.UnionType):
            annotation = next(member for member in typing.get_args(annotation) if member is not type(None))
            continue
        members = [member for member in typing.get_args(annotation) if member is not Ellipsis]
        given, annotation = [given] * (len(members) if len(members) > 1 else 2), members[0]
    parameters = inspect.signature(cls).parameters
    needed = {key: item for key, item in NEEDED.items() if key in parameters}
    cls(**{**needed, name: given})


FLOATS = [pytest.param(*case, id=f"{case[0].__name__}.{case[1]}") for case in settings(float)]
INTEGERS = [pytest.param(*case, id=f"{case[0].__name__}.{case[1]}") for case in settings(int)]


@pytest.mark.parametrize("cls, name, annotation", FLOATS)
def test_no_float_that_is_shipped_may_be_other_than_finite(cls: type, name: str, annotation: Any) -> None:
    for value in (math.nan, math.inf, -math.inf):
        if value == math.inf and f"{cls.__name__}.{name}" in INFINITE:
            build(cls, name, annotation, value)
            continue
        with pytest.raises(ValueError, match=name):
            build(cls, name, annotation, value)


ANY_INTEGER = {"means_seed"}
"""Integers of any sign."""


@pytest.mark.parametrize("cls, name, annotation", INTEGERS)
def test_no_integer_that_is_shipped_may_be_negative(cls: type, name: str, annotation: Any) -> None:
    if name in ANY_INTEGER:
        build(cls, name, annotation, -7)
        return
    with pytest.raises(ValueError, match=name):
        build(cls, name, annotation, -7)


def test_settings_are_found() -> None:
    """A search that finds nothing would test nothing."""
    names = {f"{cls.__name__}.{name}" for cls, name, _ in settings(float)}
    assert len(names) > 50 and {"DQS.critic_lr", "Maze.goals", "MixtureBackup.widths"} & names >= {"Maze.goals"}
    assert {"OnlineData.updates_per_step", "Box.low", "Karras.rho", "Relative.tau", "FramesProgress.refresh_s"} <= names
    assert len(settings(int)) > 40


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, -math.inf])
def test_what_a_check_refuses(value: float) -> None:
    with pytest.raises(ValueError, match=f"^steps={value}: must be >= 1$"):
        at_least("steps", value, 1)
    with pytest.raises(ValueError, match=f"^rate={value}: must be a finite number > 0$"):
        positive("rate", value)
    with pytest.raises(ValueError, match="must be one or more finite numbers > 0"):
        all_positive("widths", (1.0, value))
    with pytest.raises(ValueError, match=f"^blocks={value}: must be 1 to 9$"):
        within("blocks", value, 1, 9)
    if not math.isfinite(value):
        with pytest.raises(ValueError, match=f"^target={value}: must be a finite number$"):
            finite("target", value)
    if value:
        with pytest.raises(ValueError, match=f"^noise={value}: must be a finite number >= 0$"):
            not_negative("noise", value)


def test_what_a_check_returns() -> None:
    assert (
        within("blocks", 9, 1, 9) == 9
        and at_least("steps", 1, 1) == 1
        and positive("rate", 1) == 1.0
        and not_negative("noise", 0) == 0.0
    )
    assert all_positive("widths", (1, 2.0)) == (1.0, 2.0) and finite("target", -1) == -1.0
    with pytest.raises(ValueError, match=r"widths=\[\]"):
        all_positive("widths", ())
