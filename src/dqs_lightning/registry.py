"""Components by name. A component is registered by being a subclass of its base that has been imported.

Other packages bring theirs by an entry point of the group `dqs_lightning.components`, whose value is the module
that defines them.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

GROUP = "dqs_lightning.components"
T = TypeVar("T")
Init = TypeVar("Init", bound=Callable[..., None])


def load_entry_points() -> list[str]:
    """Import every module that an installed package registers; returns the modules' names."""
    points = list(entry_points(group=GROUP))
    for point in points:
        point.load()
    return [point.module for point in points]


def components(base: type[T]) -> dict[str, type[T]]:
    """All concrete subclasses of `base` that are imported, public ones, by class name."""
    found: dict[str, type[T]] = {}
    pending = [base]
    while pending:
        cls = pending.pop()
        pending.extend(cls.__subclasses__())
        if not inspect.isabstract(cls) and not cls.__name__.startswith("_"):
            found[cls.__name__] = cls
    return dict(sorted(found.items()))


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """The allowed name that `name` most likely meant, if any is close: one edit away, or alike for the most part."""
    by_lower = {candidate.lower(): candidate for candidate in allowed}
    name = name.lower()
    close = [lower for lower in by_lower if abs(len(lower) - len(name)) <= 1 and edits(name, lower) <= 1]
    if close:
        return by_lower[max(close, key=lambda lower: difflib.SequenceMatcher(None, name, lower).ratio())]
    alike = difflib.get_close_matches(name, list(by_lower), n=1, cutoff=0.6)
    return by_lower[alike[0]] if alike else None


def edits(a: str, b: str) -> int:
    """Characters to insert, delete, replace, or exchange with their neighbour, that turn `a` into `b`."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        earlier, before, row = before, row, [i]
        for j, y in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, earlier[j - 2] + 1)
            row.append(cost)
    return row[-1]


def component(name: str, value: T | str | None, base: type[T], default: type[T]) -> T:
    """`value` itself, or the registered component of that name with its own defaults; None: the default one.

    Raises:
        ValueError: for a name that is not registered or whose component needs arguments, or a value of another kind.
    """
    if value is None:
        return default()
    if not isinstance(value, str):
        if not isinstance(value, base):
            raise ValueError(f"{name}={value!r}: must be a {base.__name__} or the name of one")
        return value
    known = components(base)
    if value not in known:
        guess = nearest(value, known)
        hint = f"; did you mean {guess}?" if guess else ""
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(known)}{hint}")
    try:
        return known[value]()
    except TypeError as ex:
        raise ValueError(f"{name}={value!r}: {value} needs arguments; pass the object ({ex})") from None


def arguments_of(value: Any) -> dict[str, Any]:
    """Returns the constructor's arguments of a component, read from its attributes of the same names."""
    return {name: getattr(value, name) for name in inspect.signature(type(value)).parameters if hasattr(value, name)}


def with_arguments_of(base: type) -> Callable[[Init], Init]:
    """Decorates a constructor that passes its `**kwargs` to that of `base`: it then has the arguments of both by name.

    Configurations and checkpoints read the names and types of arguments from the signature.
    """

    def decorate(init: Init) -> Init:
        own = [p for p in inspect.signature(init).parameters.values() if p.kind is not p.VAR_KEYWORD]
        names, inherited = {p.name for p in own}, inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]  # base is a class, not an object
        further = [p.replace(kind=p.KEYWORD_ONLY) for p in inherited if p.name not in names]
        described: Any = init
        described.__signature__ = inspect.Signature([*own, *further])
        described.__annotations__ = {**base.__init__.__annotations__, **init.__annotations__}  # type: ignore[misc]  # as above
        return init

    return decorate


def replace(value: T, **changes: Any) -> T:
    """Returns a new component of the same class with some arguments changed, which are checked as usual."""
    return type(value)(**{**arguments_of(value), **changes})


def describe(value: Any) -> Any:
    """A component as {class_path, init_args}, the form in which configurations and checkpoints hold it.

    Arguments are read from the attributes of the same name; plain values stay as they are.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {key: describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    cls = type(value)
    return {
        "class_path": f"{cls.__module__}.{cls.__qualname__}",
        "init_args": {name: describe(argument) for name, argument in arguments_of(value).items()},
    }
