"""Constructs objects from the plain values of a checkpoint, without running anything else that the file names.

`registry.describe` writes a component as {class_path, init_args}; `construct` is its inverse. The class must be a
registered component that is imported already, or one of a package that `trust` was called with.
"""

import importlib
import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dqs_lightning.checkpoint.bounded import check_bounded

PACKAGE = __name__.partition(".")[0]
SHOWN_CHARACTERS = 200
"""Length at which a text from a file is cut in a message."""

_trusted: set[str] = set()


class UntrustedNameError(ValueError):
    """A checkpoint names a class that is not a registered component, or that cannot be imported here."""


def trust(packages: Iterable[str]) -> None:
    """Allow checkpoints to name any class of these packages or modules, for as long as the process lives."""
    _trusted.update(packages)


def named_class(path: Any) -> type:
    """Return the class of an import path such as dqs_lightning.diffusion.schedules.Geometric.

    Raises:
        UntrustedNameError: when it is not a class that is imported and registered, or one of a trusted package.
    """
    shown = repr(path)[:SHOWN_CHARACTERS]
    parts = path.split(".") if isinstance(path, str) else []
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise UntrustedNameError(f"names the class {shown}; must be an import path such as package.module.Class")
    found: Any = None
    for cut in range(len(parts) - 1, 0, -1):
        if (module := _module(".".join(parts[:cut]))) is not None:
            found = module
            for part in parts[cut:]:  # vars: a module's __getattr__ could import what the file names
                if found is sys.modules[PACKAGE] and part in found.__all__:  # imports modules of this package only
                    found = getattr(found, part)
                else:
                    found = vars(found).get(part) if hasattr(found, "__dict__") else None
            break
    if isinstance(found, type) and (_is_component(found) or _is_trusted(found.__module__)):
        if inspect.isabstract(found):
            raise UntrustedNameError(f"names {path}, which is abstract")
        return found
    if parts[0] == PACKAGE or _is_trusted(path):
        raise UntrustedNameError(f"names {path}, which is no class of the package {parts[0]} that is installed here")
    raise UntrustedNameError(
        f"names {path}, which is neither imported nor of a trusted package; if you trust {parts[0]}, add --trust "
        f'{parts[0]} (in Python: import it, or call dqs_lightning.checkpoint.restore.trust(["{parts[0]}"]))'
    )


def construct(value: Any) -> Any:
    """The inverse of `registry.describe`: each {class_path, init_args} becomes an object; the rest is kept.

    Raises:
        UntrustedNameError: see `named_class`.
        ValueError: when a class refuses its arguments; it names the class.
    """
    if isinstance(value, str) and "${oc.env:" in value:  # saved as written, so that no secret is in the file
        return OmegaConf.select(OmegaConf.create({"value": value}), "value")
    if isinstance(value, list | tuple):
        return [construct(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "class_path" not in value:
        return {key: construct(item) for key, item in value.items()}
    cls = named_class(value["class_path"])
    arguments = construct(value.get("init_args") or {})
    check_types(cls, arguments)
    try:
        return cls(**arguments)
    except Exception as error:  # a class may be another package's
        raise ValueError(f"{cls.__name__}: {error}") from error


def check_types(cls: type, arguments: Mapping[str, Any]) -> None:
    """Raises a TypeError for the first argument that is not of the type that a constructor is annotated with."""
    try:
        hints = get_type_hints(inspect.getattr_static(cls, "__init__"))
    except NameError:  # another package's, imported for its type checker alone
        return
    for name, value in arguments.items():
        if name in hints and not fits(value, hints[name]):
            hint = getattr(hints[name], "__name__", hints[name])
            raise TypeError(f"{cls.__name__}: {name}={str(value)[:SHOWN_CHARACTERS]}: must be {hint}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of a file is of an annotated type; types that files cannot contain are not checked."""
    inner = get_args(hint)
    match get_origin(hint) or hint:
        case origin if origin in (Union, UnionType):
            return any(fits(value, one) for one in inner)
        case origin if origin is Literal:
            return value in inner
        case origin if origin in (Sequence, list, tuple):
            return isinstance(value, list | tuple) and all(fits(item, inner[0]) for item in value if inner)
        case origin if origin in (int, float):
            return isinstance(value, int if origin is int else int | float) and not isinstance(value, bool)
        case origin if isinstance(origin, type):
            return isinstance(value, origin)
    return True


def saved_arguments(checkpoint: Mapping[str, Any], key: str, cls: type) -> dict[str, Any]:
    """Return the arguments with which `cls` was constructed, built from the hyperparameters of a checkpoint.

    Args:
        checkpoint: of a run.
        key: of its hyperparameters.
        cls: a class; names that its constructor does not have are left out.

    Raises:
        UntrustedNameError: see `named_class`.
        ValueError: when they are missing, not plain values, or refused; the message has one line.
    """
    saved = checkpoint.get(key)
    if not isinstance(saved, Mapping):
        raise ValueError(f"holds no arguments of {cls.__name__}")
    known = inspect.signature(cls).parameters
    try:
        check_bounded(saved)
        arguments = {name: construct(value) for name, value in saved.items() if name in known}
        check_types(cls, arguments)
        return arguments
    except UntrustedNameError:
        raise
    except (OmegaConfBaseException, RecursionError, TypeError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())[: 2 * SHOWN_CHARACTERS] or type(error).__name__) from error


def _module(name: str) -> Any:
    """A module that is imported already, or that belongs to a trusted package; None for any other."""
    if name in sys.modules or not _is_trusted(name):
        return sys.modules.get(name)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            return None
        raise UntrustedNameError(f"names {name}, which cannot be imported: {error}") from error
    except Exception as error:
        raise UntrustedNameError(f"names {name}, which cannot be imported: {error!r}") from error


def _is_trusted(name: str) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:length]) in _trusted for length in range(1, len(parts) + 1))


def _is_component(cls: type) -> bool:
    """Whether a class has an abstract base of this package, as all agents, environments and their parts have."""
    return any(inspect.isabstract(base) and base.__module__.startswith(f"{PACKAGE}.") for base in cls.__mro__[1:])
