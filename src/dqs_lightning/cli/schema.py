"""Describes the settings of a parser as a tree, and what their types allow."""

import collections.abc
import functools
import inspect
import sys
import types
import typing
from dataclasses import dataclass
from typing import Any, TypeAlias, Union

from jsonargparse import ArgumentParser, Namespace

from dqs_lightning.cli.errors import refusing
from dqs_lightning.registry import components

MOST_LISTED = 12
"""Components of a family that a message lists."""


@dataclass(frozen=True)
class Setting:
    """One setting of a parser."""

    annotation: Any
    default_class: type | None = None  # of the component that it holds where nothing else is named

    @property
    def families(self) -> tuple[type, ...]:
        """Base classes whose subclasses the setting may name; none for a plain value or any text."""
        members = _members(self.annotation)
        inner = [part for member in members for part in (_members(_item(member)) if _item(member) else [member])]
        return () if str in members else tuple(part for part in inner if _is_family(part))

    @property
    def is_list(self) -> bool:
        """Whether it may hold a list."""
        return any(_item(member) is not None for member in _members(self.annotation))

    def admits(self, value: Any) -> bool:
        """Whether a value, or the text of one, is of the setting's type."""
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--value", type=self.annotation)
        try:
            parser.parse_object({"value": value})
        except Exception:  # whatever the parser cannot take
            return False
        return value is not None or type(None) in _members(self.annotation)

    def allowed(self) -> str:
        """Describes the allowed values."""
        return " or ".join(dict.fromkeys(name for member in _members(self.annotation) for name in _names(member)))


Tree: TypeAlias = "dict[str, Setting | Tree]"


def tree_of(parser: ArgumentParser) -> Tree:
    """Returns the settings of a parser; those of a group, such as `data`, are a tree of their own."""
    tree: Tree = {}
    for action in parser._actions:
        if not hasattr(action, "_typehint") or action.dest.endswith(".help"):
            continue
        *groups, name = action.dest.split(".")
        branch: Any = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        members = _members(action._typehint)
        if action.dest in getattr(parser, "_extra_required_keys", ()) and len(members) > 1:  # null is not given
            members.remove(type(None))
        branch[name] = Setting(Union[tuple(members)], _class_of(action.default))  # noqa: UP007
    return tree


@functools.cache
def arguments_of(cls: type) -> Tree:
    """Returns the arguments of a class; refuses a class with arguments of types that no configuration can hold."""
    parser = ArgumentParser(exit_on_error=False)
    with refusing(f"{cls.__name__}: cannot be named in a configuration: ", ValueError):
        parser.add_class_arguments(cls, fail_untyped=False)
    return tree_of(parser)


def takes_any_keyword(cls: type) -> bool:
    """Whether a class takes keywords that its signature does not name."""
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(cls).parameters.values())


def family_members(families: tuple[type, ...]) -> dict[str, type]:
    """Returns all components of some families, by class name."""
    known: dict[str, type] = {}
    for base in families:
        known |= components(base)
    return known


def listed(families: tuple[type, ...]) -> str:
    """Returns the components of some families as a message lists them, or the base class where there are many."""
    known = family_members(families)
    if 0 < len(known) <= MOST_LISTED:
        return f"one of {', '.join(known)}"
    name = families[0].__name__
    return f"{'an' if name[0] in 'AEIO' else 'a'} {name}"


def resolve(name: str, families: tuple[type, ...]) -> type | None:
    """Returns the component of a class name or an import path; None where there is none. Imports nothing."""
    found = _class_at(name) if "." in name else family_members(families).get(name)
    return found if found and issubclass(found, families) else None


def _class_of(default: Any) -> type | None:
    named = isinstance(default, dict | Namespace) and "class_path" in default
    return _class_at(str(default["class_path"])) if named else None


def _class_at(path: str) -> type | None:
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) else None


def _members(annotation: Any) -> list[Any]:
    """Returns the members of a union, or the type itself, without what `Annotated` adds."""
    while hasattr(annotation, "__metadata__"):
        annotation = annotation.__origin__
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return [inner for member in typing.get_args(annotation) for inner in _members(member)]
    return [annotation]


def default_classes(key: str, value: Any) -> dict[str, type]:
    """Returns the classes of a configuration's components, by key, such as model.sampler."""
    if not isinstance(value, dict):
        return {}
    cls = _class_of(value)
    found = {} if cls is None else {key: cls}
    for name, inner in (value.get("init_args", {}) if cls else value).items():
        found |= default_classes(f"{key}.{name}", inner)
    return found


def _item(annotation: Any) -> Any:
    """Returns the type of a list's items; None for any other type."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    is_list = isinstance(origin, type) and issubclass(origin, collections.abc.Iterable)
    return arguments[0] if is_list and arguments and not issubclass(origin, collections.abc.Mapping) else None


def _is_family(cls: Any) -> bool:
    return isinstance(cls, type) and cls.__module__.partition(".")[0] not in ("builtins", "pathlib", "datetime")


def _names(annotation: Any) -> list[str]:
    """Returns a type in words; several for a choice of values."""
    if annotation is type(None):
        return ["null"]
    if typing.get_origin(annotation) is typing.Literal:
        return [str(value) for value in typing.get_args(annotation)]
    if item := _item(annotation):
        inner = Setting(item).allowed().removeprefix("a ").replace("list of", "lists of")
        return [f"a list of {inner}"]
    if not _is_family(annotation):
        return [str(annotation) if typing.get_args(annotation) else getattr(annotation, "__name__", str(annotation))]
    return [listed((annotation,))]
