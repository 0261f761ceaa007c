"""Hooks of a study inside a training process: each wraps a function of the framework, named by its path.

`hook(function, ...)` describes one in JSON, so that it can be sent to forked and real processes. It applies to the
ranks in its `ranks`. It writes its files to the folder `marks` of the process's working directory.
"""

import functools
import inspect
import os
import pkgutil
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

MARKS = Path("marks")
LOOK_EVERY_S = 0.01


def hook(function: Callable[..., None], **settings: Any) -> list[Any]:
    """Describe the call of a hook, which `apply` makes in another process."""
    return [f"{function.__module__}:{function.__name__}", settings]


def apply(hooks: Iterable[Sequence[Any]]) -> None:
    """Apply hooks that `hook` has described to this process.

    Raises:
        AttributeError: if a function to be wrapped does not exist.
    """
    MARKS.mkdir(exist_ok=True)
    for name, settings in hooks:
        pkgutil.resolve_name(name)(**settings)


def rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def note(name: str, text: str = "") -> None:
    """Append a line to a file of `marks` atomically."""
    with (MARKS / name).open("ab", buffering=0) as file:
        file.write(f"{time.monotonic():.6f} {os.getpid()} {text}\n".encode())


def wrap(
    target: str, ranks: Sequence[int], at: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
) -> None:
    """Replace `module:path.to.function` by a function that calls at(original, arguments, keywords)."""
    if rank() not in ranks:
        return
    place, _, name = target.rpartition("." if "." in target.partition(":")[2] else ":")
    owner = pkgutil.resolve_name(place)
    found = inspect.getattr_static(owner, name)
    static = isinstance(found, staticmethod)
    original = found.__func__ if static else found

    @functools.wraps(original)
    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        return at(original, arguments, keywords)

    setattr(owner, name, staticmethod(wrapped) if static else wrapped)


def pause(
    target: str,
    ranks: Sequence[int] = (0,),
    call: int = 1,
    after: bool = False,
    mark: str = "paused",
    limit_s: float = 20.0,
) -> None:
    """Wait in the call-th call of a function, before or after its work, until the file `marks/go` exists.

    Writes the file `<mark>-<rank>` when it waits. Signal handlers run meanwhile.
    """
    calls = 0

    def at(original: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        nonlocal calls
        calls += 1
        due = calls == call
        result = original(*arguments, **keywords) if after else None
        if due:
            note(f"{mark}-{rank()}")
            until = time.monotonic() + limit_s
            while not (MARKS / "go").exists() and time.monotonic() < until:
                time.sleep(LOOK_EVERY_S)
        return result if after else original(*arguments, **keywords)

    wrap(target, ranks, at)


def slow(target: str, seconds: float, calls: int, ranks: Sequence[int] = (0, 1), once: str = "paused") -> None:
    """Delay each of the first `calls` calls of a function by `seconds` after the file `<once>-<rank>` exists."""
    left = calls

    def at(original: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        nonlocal left
        if left and (MARKS / f"{once}-{rank()}").exists():
            left -= 1
            time.sleep(seconds)
        return original(*arguments, **keywords)

    wrap(target, ranks, at)


def signal_at(target: str, call: int, number: int = signal.SIGTERM, ranks: Sequence[int] = (0,)) -> None:
    """Send a signal to the process itself before the call-th call of a function."""
    calls = 0

    def at(original: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            note(f"signalled-{rank()}")
            os.kill(os.getpid(), number)
        return original(*arguments, **keywords)

    wrap(target, ranks, at)


def log_calls(target: str, mark: str, label: str | None = None, ranks: Sequence[int] = (0, 1)) -> None:
    """Append `begin` and `end` to `<mark>-<rank>` around each call of a function, with a label or its last argument."""

    def at(original: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        what = label or os.path.basename(str(arguments[-1]))
        note(f"{mark}-{rank()}", f"begin {what}")
        result = original(*arguments, **keywords)
        note(f"{mark}-{rank()}", f"end {what}")
        return result

    wrap(target, ranks, at)


def dump_restored(mark: str = "restored", ranks: Sequence[int] = (0, 1)) -> None:
    """Write a rank's restored state to `<mark>-<rank>.pt` before anything is collected."""
    import torch

    def at(original: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        result = original(*arguments, **keywords)
        agent, data = arguments[0].agent, arguments[0].data
        found = {
            "state_dict": agent.state_dict(),
            "optimizer_states": [optimizer.state_dict() for optimizer in agent.trainer.optimizers],
            "global_step": agent.trainer.global_step,
            "rank": data.rank_state(),
        }
        torch.save(found, MARKS / f"{mark}-{rank()}.pt")
        return result

    wrap("dqs_lightning.collection.loader:OnlineLoader._start", ranks, at)
