"""Replaces one number in the result of a function of the framework by a non-finite or very large one, once."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from faults.hooks import note, rank, wrap


def poison(
    target: str,
    value: str,
    ranks: Sequence[int],
    call: int,
    key: str | int | None = None,
    width: int | None = None,
    add: bool = False,
) -> None:
    """Change the result of the call-th call of a function and write the file `poisoned-<rank>`.

    Args:
        target: the function, as for `hooks.wrap`.
        value: a number, as float() reads it.
        ranks: ranks to which it applies.
        call: number of the call, from 1.
        key: key of the result's entry that is changed; None if the result is the tensor.
        width: count only calls whose result has this size in its last dimension.
        add: add the number to the whole tensor, so that gradients stay finite; otherwise it replaces the first entry.
    """
    number, calls = float(value), 0

    def changed(tensor: Tensor) -> Tensor:
        if add:
            return tensor + number
        first = torch.arange(tensor.numel(), device=tensor.device).view(tensor.shape) == 0
        return torch.where(first, torch.full_like(tensor, number), tensor)

    def at(original: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        nonlocal calls
        result = original(*arguments, **keywords)
        if width is not None and result.shape[-1] != width:
            return result
        calls += 1
        if calls != call:
            return result
        note(f"poisoned-{rank()}")
        if key is None:
            return changed(result)
        if isinstance(result, tuple):
            entries = list(result)
            index = type(result)._fields.index(key) if isinstance(key, str) else key  # type: ignore[attr-defined]
            entries[index] = changed(entries[index])
            return type(result)(*entries) if hasattr(result, "_fields") else tuple(entries)
        result[key] = changed(result[key])
        return result

    wrap(target, ranks, at)


def poison_gradient(value: str, ranks: Sequence[int], call: int) -> None:
    """Change an entry of a gradient after the call-th backward pass, after the gradients are averaged over ranks."""
    calls = 0

    def at(original: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        nonlocal calls
        original(*arguments, **keywords)
        calls += 1
        if calls == call:
            note(f"poisoned-{rank()}")
            gradient = next(p.grad for p in arguments[0].parameters() if p.grad is not None)
            gradient.view(-1)[0] = float(value)

    wrap("dqs_lightning.agents.base:Agent.manual_backward", ranks, at)
