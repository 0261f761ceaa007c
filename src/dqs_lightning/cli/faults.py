"""Finds what is wrong in a configuration that the parser refused: the whole key, its value, what is allowed."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Union

import yaml

from dqs_lightning.cli.config_file import load_yaml
from dqs_lightning.cli.errors import InputError, did_you_mean, shown
from dqs_lightning.cli.schema import Setting, Tree, arguments_of, family_members, listed, resolve, takes_any_keyword
from dqs_lightning.registry import edits, nearest

CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
"""Keys of a component in a configuration."""
FURTHER_OPTIONS = ("config", "help", "list", "print_config")
"""Options that are no settings."""


@dataclass(frozen=True)
class Source:
    """The content of one file or option; `dashes` is put before the name of an unknown option."""

    content: dict[str, Any]
    dashes: str = ""

    @classmethod
    def of_option(cls, option: str, text: str) -> "Source":
        """Makes the source of an option, such as --model.temperature.tau, and the text of its value."""
        value: Any = text
        with contextlib.suppress(yaml.YAMLError):
            value = found if isinstance(found := load_yaml(text), dict | list) else text
        for name in reversed(option.removeprefix("--").split(".")):
            value = {name: value}
        return cls(value, "--")


def raise_fault(tree: Tree, sources: Iterable[Source], defaults: Mapping[str, type]) -> None:
    """Raises `InputError` for the first key or component that is unknown, else for the first wrong type.

    Args:
        tree: every setting of the parser.
        sources: files and options, in the order in which they are read.
        defaults: the classes that settings hold where nothing else is named, by key.
    """
    sources = list(sources)
    for types in (False, True):
        search = _Search(tree, types, defaults)
        for source in sources:
            search.dashes = source.dashes
            search.group("", source.content, tree)


class _Search:
    """One pass over all sources. Tracks the class that each setting holds, since it determines the keys below it."""

    def __init__(self, tree: Tree, types: bool, defaults: Mapping[str, type]) -> None:
        self.tree, self.types, self.dashes = tree, types, ""
        self.classes = dict(defaults)

    def group(self, key: str, content: Any, tree: Tree) -> None:
        """Checks keys and values of a group of settings, or of a component's arguments."""
        if not isinstance(content, dict):
            raise InputError(f"{key}={shown(content)}: must hold keys and values")
        for written, value in content.items():
            name, full = _name(written), _join(key, _name(written))
            if rest := written.partition(".")[2]:
                value = {rest: value}
            entry = tree.get(name)
            if entry is None:
                raise self.unknown(key, name, tree)
            if isinstance(entry, Setting):
                self.setting(full, value, entry)
            else:
                self.group(full, value, entry)

    def setting(self, key: str, value: Any, setting: Setting) -> None:
        """Checks the value of one setting: a component, a list of them, or a plain value."""
        families = setting.families
        if families and isinstance(value, list) and setting.is_list:
            for index, item in enumerate(value):
                self.setting(f"{key}.{index}", item, Setting(Union[families]))  # noqa: UP007
            if value:
                self.classes[key] = self.classes.get(f"{key}.{len(value) - 1}", object)
        elif families and isinstance(value, str) and value != "null":
            self.classes[key] = self.resolved(key, value, families)
        elif families and isinstance(value, dict):
            self.mapping(key, value, setting)
        elif self.types:
            self.type(key, None if families and value == "null" else value, setting)

    def mapping(self, key: str, value: dict[str, Any], setting: Setting) -> None:
        """Checks a component that is written as class_path, init_args and dict_kwargs, or as its arguments alone."""
        families = setting.families
        if "class_path" in value:
            self.classes[key] = self.resolved(key, value["class_path"], families)
        cls = self.classes.get(key, setting.default_class)
        arguments = arguments_of(cls) if cls else {}
        bare = not value.keys() & set(CLASS_KEYS)
        for written in value:
            name = _name(written)
            if name in arguments and not bare and name not in CLASS_KEYS:
                raise InputError(f"{key}.{name}: must be given in {key}.init_args")
            if name not in CLASS_KEYS and not (bare and name in arguments) and (cls or nearest(name, CLASS_KEYS)):
                raise self.unknown(key, name, [*arguments, *CLASS_KEYS])
        if cls is None:
            raise InputError(f"{key}: needs a class_path; must be {listed(families)}")
        for name in () if bare else ("init_args", "dict_kwargs"):
            if not isinstance(value.get(name, {}), dict):
                raise InputError(f"{key}.{name}={shown(value[name])}: must hold keys and values")
        self.group(key, value if bare else value.get("init_args", {}), arguments)
        if not takes_any_keyword(cls):
            self.group(key, {} if bare else value.get("dict_kwargs", {}), arguments)

    def resolved(self, key: str, name: Any, families: tuple[type, ...]) -> type:
        found = resolve(name, families) if isinstance(name, str) else None
        if found is None:
            hint = did_you_mean(str(name).rpartition(".")[2], family_members(families))
            raise InputError(f"{key}={shown(name)}: no such component; must be {listed(families)}{hint}")
        arguments_of(found)  # refuses a class that no configuration can hold
        return found

    def type(self, key: str, value: Any, setting: Setting) -> None:
        if setting.admits(value):
            return
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = float(value)
        whole = isinstance(value, float) and value.is_integer() and setting.admits(int(value))
        hint = f"; write {int(value)}" if whole else ""
        raise InputError(f"{key}={shown(value)}: must be {setting.allowed()}{hint}")

    def unknown(self, key: str, name: str, siblings: Iterable[str]) -> InputError:
        """Returns the error for an unknown name below a key, with a similar name there or the same one elsewhere."""
        known = [*siblings, *(FURTHER_OPTIONS if self.dashes and not key else ())]
        near = nearest(name, known)
        meant = _join(key, near) if near else None
        if near is None or edits(name.lower(), near.lower()) > 1:
            there = {leaf: full for full, leaf in reversed(list(self.everywhere()))}
            elsewhere = next((leaf for leaf in there if edits(name.lower(), leaf.lower()) <= 1), None)
            meant = there[name] if name in there else meant or (there[elsewhere] if elsewhere else None)
        kind = "option" if self.dashes else "key"
        owner = f" of {self.classes[key].__name__}" if key in self.classes else ""
        hint = f"\nDid you mean {self.dashes}{meant}?" if meant else ""
        return InputError(f"{self.dashes}{_join(key, shown(name))}: no such {kind}{owner}{hint}")

    def everywhere(self) -> Iterator[tuple[str, str]]:
        """Yields every known key and its last part; keys of fewer parts first."""
        pending: list[tuple[str, Tree]] = [("", self.tree)]
        while pending:
            key, tree = pending.pop(0)
            for name, entry in tree.items():
                full = _join(key, name)
                yield full, name
                if not isinstance(entry, Setting):
                    pending.append((full, entry))
                elif cls := self.classes.get(full, entry.default_class):
                    pending.append((full, arguments_of(cls)))


def explain(message: str) -> str | None:
    """Rewords a short message of the parser; None where a search of the sources finds more."""
    if found := re.search(r"Importing '(\S+?)' is not allowed", message):
        return f"{_key_in(message)}={found[1]}: no such component; only trusted packages are imported: see --trust"
    if found := re.search(r"argument (\S+): expected one argument", message):
        return f"{found[1].rpartition('/')[2]}: needs a value"
    if found := re.search(r"unrecognized arguments: ([^-].*)", message):
        return f"{found[1]}: must be an option; options start with --"
    return None


def parsers_own(message: str) -> str:
    """Returns the parser's own message, for what no search finds."""
    if found := re.search(r"unrecognized arguments: (.+)", message):
        return f"{found[1]}: no such option"
    if found := re.search(r"the following arguments are required: (.+)", message):
        return f"{found[1]}: must be given"
    expected, given = re.findall(r"Expected an? <class '(\w+)'>", message), re.findall(r"Given value: (.+)", message)
    if expected and given:
        allowed = " or ".join(dict.fromkeys(expected)).replace("NoneType", "null")
        return f"{_key_in(message)}={shown(given[0])}: must be {allowed}"
    return "\n".join(line.strip(" -") for line in message.splitlines() if line.strip(" -"))


def _key_in(message: str) -> str:
    return ".".join(re.findall(r"^[ -]*Parser key \"([\w.]+)\"", message, re.MULTILINE))


def _name(written: str) -> str:
    """Returns the first part of a key as it is written: callbacks of callbacks+, data of data.num_envs."""
    return written.partition(".")[0].removesuffix("+")


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
