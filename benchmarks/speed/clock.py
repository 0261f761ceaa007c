"""CPU time by part of a program: clocks around functions, each without what the others below it take."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock


class Clock:
    """Adds up process CPU time by part.

    Attributes:
        seconds: of each part, without the time of parts that it called.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._below: list[float] = []
        self._whole = False

    @contextlib.contextmanager
    def part(self, name: str, whole: bool = False) -> Iterator[None]:
        """The block is time of this part, but for the parts inside it; `whole`: with them."""
        if self._whole:
            yield
            return
        start = time.process_time()
        self._below.append(0.0)
        self._whole = whole
        try:
            yield
        finally:
            self._whole = False
            took = time.process_time() - start
            self.seconds[name] += took - self._below.pop()
            if self._below:
                self._below[-1] += took

    def around(self, owner: Any, name: str, part: str) -> AbstractContextManager[Any]:
        """While this context is open, calls of `owner.name` are time of `part`."""
        inner: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(part):
                return inner(*args, **kwargs)

        return mock.patch.object(owner, name, timed)

    def iterating(self, owner: type, part: str) -> AbstractContextManager[Any]:
        """While this context is open, what an iteration over an `owner` takes to yield is time of `part`."""
        inner: Callable[[Any], Generator[Any]] = owner.__iter__  # type: ignore[attr-defined]  # `type` promises none

        def timed(iterable: Any) -> Iterator[Any]:
            with contextlib.closing(inner(iterable)) as items:
                while True:
                    with self.part(part):
                        item = next(items, self)
                    if item is self:
                        return
                    yield item

        return mock.patch.object(owner, "__iter__", timed)
