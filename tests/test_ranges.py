"""Tests of range checks: the checks themselves, and every number of every shipped component."""

import inspect
import math
import types
import typing
from collections.abc import Sequence
from typing import Any

import pytest

import dqs_callbacks  # noqa: F401  (registers its callbacks)
from dqs_lightning.cli.parser import BASES
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.diffusion import Importance, MomentMatched
from dqs_lightning.envs import Maze
from dqs_lightning.ranges import Count, Finite, HalfOpenShare, Positive, Share, checked
from dqs_lightning.registry import components, replace
from dqs_lightning.run.checkpoint import RunCheckpoint

NEEDED: dict[str, Any] = {
    "observation_dim": 3,
    "action_dim": 2,
    "environment": Maze(),
    "run": "run",
    "below": Importance(),
    "above": Importance(),
}
"""Values for arguments without a default."""

INFINITE = {"MomentMatched.max_ratio"}
"""Settings that may be infinite."""


def classes() -> list[type]:
    found = {cls for base in BASES for cls in components(base).values() if cls.__module__.startswith("dqs_")}
    return sorted({*found, OnlineData, RunCheckpoint}, key=lambda cls: cls.__name__)


def admits(annotation: Any, kind: type) -> bool:
    return any(member is kind or admits(member, kind) for member in typing.get_args(annotation)) or annotation is kind


def settings(kind: type) -> list[tuple[type, str, Any]]:
    """Returns each argument of the given number type, or of a list of it, of every shipped class."""
    return [
        (cls, name, annotation)
        for cls in classes()
        for name, annotation in typing.get_type_hints(cls.__init__).items()
        if name in inspect.signature(cls).parameters and admits(annotation, kind) and name not in NEEDED
    ]


def build(cls: type, name: str, annotation: Any, value: float) -> None:
    """Construct the class with one argument set, nested in lists as its type requires."""
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
def test_every_float_of_shipped_classes_must_be_finite(cls: type, name: str, annotation: Any) -> None:
    for value in (math.nan, math.inf, -math.inf):
        if value == math.inf and f"{cls.__name__}.{name}" in INFINITE:
            build(cls, name, annotation, value)
            continue
        with pytest.raises(ValueError, match=name):
            build(cls, name, annotation, value)


ANY_INTEGER = {"means_seed"}
"""Integers that may be negative."""


@pytest.mark.parametrize("cls, name, annotation", INTEGERS)
def test_no_integer_of_shipped_classes_may_be_negative(cls: type, name: str, annotation: Any) -> None:
    if name in ANY_INTEGER:
        build(cls, name, annotation, -7)
        return
    with pytest.raises(ValueError, match=name):
        build(cls, name, annotation, -7)


def test_the_search_finds_the_settings() -> None:
    """Guards against a search that finds nothing, which would test nothing."""
    names = {f"{cls.__name__}.{name}" for cls, name, _ in settings(float)}
    assert len(names) > 50 and {"DQS.critic_lr", "Maze.goals", "MixtureBackup.widths"} & names >= {"Maze.goals"}
    assert {"OnlineData.updates_per_step", "Box.low", "Karras.rho", "Relative.tau", "FramesProgress.refresh_s"} <= names
    assert len(settings(int)) > 40


class Component:
    @checked
    def __init__(
        self,
        steps: Count = 1,
        tau: Share = 1.0,
        decay: HalfOpenShare = 0.0,
        clip: Positive | None = None,
        widths: tuple[Positive, ...] = (1.0,),
        points: Sequence[Sequence[Finite]] | None = None,
        free: float = 0.0,
    ) -> None:
        self.steps, self.tau, self.decay, self.clip = steps, tau, decay, clip
        self.widths, self.points, self.free = widths, points, free


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("steps", 0, "steps=0: must be >= 1"),
        ("steps", math.inf, "steps=inf: must be >= 1"),
        ("tau", 0.0, r"tau=0.0: must be in \(0, 1\]"),
        ("tau", 1.1, r"tau=1.1: must be in \(0, 1\]"),
        ("decay", 1.0, r"decay=1.0: must be in \[0, 1\)"),
        ("decay", math.nan, r"decay=nan: must be in \[0, 1\)"),
        ("clip", 0, "clip=0: must be a finite number > 0"),
        ("widths", (), r"widths=\[\]: must be one or more, each a finite number > 0"),
        ("widths", (1.0, -1.0), "widths=-1.0: must be a finite number > 0"),
        ("points", [[0.0], [math.inf]], "points=inf: must be a finite number"),
    ],
)
def test_an_argument_out_of_its_range_is_named(argument: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Component(**{argument: value})


def test_arguments_are_converted_to_their_type() -> None:
    made = Component(3, 1, widths=[1, 2], points=[[1], [2]], clip=None, free=math.nan)
    assert (made.steps, made.tau, made.widths, made.points, made.clip) == (3, 1.0, (1.0, 2.0), ((1.0,), (2.0,)), None)
    assert all(isinstance(width, float) for width in (made.tau, *made.widths)) and math.isnan(made.free)


def test_undeclared_arguments_are_passed_on() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'step'"):
        Component(step=1)


def test_replace_makes_a_new_component_with_the_same_arguments() -> None:
    sampler = MomentMatched(6, max_ratio=3.0)
    changed = replace(sampler, steps=30)
    assert (changed.steps, changed.max_ratio, sampler.steps) == (30, 3.0, 6)
    with pytest.raises(ValueError, match="steps=0: must be >= 1"):
        replace(sampler, steps=0)
