"""Bad input, said in a few lines: the key, the value, what is allowed, and the nearest name."""

import inspect
import re
from collections.abc import Iterable

from dqs_lightning.registry import components, nearest

DONE, BAD_INPUT, DIVERGED, ENVIRONMENT_FAILED, NOT_SAVED, STOPPED = 0, 2, 3, 4, 5, 75
"""Exit codes. A run that ended with ENVIRONMENT_FAILED, NOT_SAVED or STOPPED is continued by the same command."""


_COMPONENT = (
    r"Expected a dot import path string: (\S+)",
    r"Import path does not correspond[\s\S]*?Given value: (\S+)",
    r"Importing '(\S+?)' is not allowed",
    r"Problem with given class_path '(\S+)'",
)


class InputError(ValueError):
    """Input that is refused before any work starts; its text is what the user sees."""


def explain(message: str, keys: Iterable[str], bases: Iterable[type]) -> str:
    """Say what the parser means in at most five short lines.

    Args:
        message: jsonargparse's message: nested blocks that name a part of the key each, over hundreds of lines.
        keys: every key that the parser knows, for a suggestion.
        bases: base classes of all components, for their names and arguments.
    """
    families: dict[str, dict[str, type]] = {_key_of(base): components(base) for base in bases}
    key = ".".join(re.findall(r"^[ -]*Parser key \"([\w.]+)\"", message, re.MULTILINE))
    if found := re.search(r"unrecognized arguments: (--)?([\w.]+)", message):
        return _unknown(f"--{found[2]}: no such option", found[2], keys)
    if found := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message):
        return _unknown(f"{found[1]}.{found[2]}: no such key", f"{found[1]}.{found[2]}", keys)
    if found := re.search(r"Option '([\w.]+)' is not accepted", message):
        own = (cls for family in families.values() for cls in family.values() if cls.__module__.startswith("dqs_"))
        allowed = {name for cls in own for name in inspect.signature(cls).parameters} if key else keys
        return _unknown(f"{key}.{found[1]}: no such key".lstrip("."), found[1], allowed)
    if found := re.search(r"Expected an? (.+?)\. Got value: (.*)", message):
        return f"{key}={found[2]}: must be {_type_names(found[1])}"
    nested = re.findall(r"NestedArg\(key='([\w.]+)'", message)
    for pattern in _COMPONENT:
        if found := re.search(pattern, message):
            if nested and "." not in key:
                key = f"{key}.{nested[-1].removesuffix('.help')}"
            family = families.get(key.rpartition(".")[2], {})
            listed = f"; allowed is one of {', '.join(family)}" if 0 < len(family) < 12 else ""
            if "not allowed" in message:
                listed = "; only trusted packages are imported: see --trust"
            return _unknown(f"{key}={found[1]}: no such component{listed}", found[1].rpartition(".")[2], family)
    expected = dict.fromkeys(re.findall(r"Expected an? (?!.*path)(.+)", message))
    values = re.findall(r"Given value: (.+)", message)
    if expected and values:
        return f"{key}={values[0]}: must be {_type_names(' or '.join(expected))}"
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    return "\n".join(line[:200] for line in lines[:4])


def _key_of(base: type) -> str:
    """The configuration key under which a base's components stand: NoiseSchedule, noise_schedule."""
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", base.__name__).lower()
    return {"agent": "model", "callback": "callbacks"}.get(snake, snake)


def _type_names(text: str) -> str:
    return re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", text).replace("NoneType", "null")


def _unknown(text: str, wanted: str, allowed: Iterable[str]) -> str:
    found = nearest(wanted, allowed)
    return f"{text}\nDid you mean {found}?" if found else text
