"""Sends and receives values over a pipe, with a callback while the other side makes no progress."""

import os
import pickle
import select
import struct
from collections.abc import Callable
from typing import Any

from dqs_lightning.envs.deadline import TICK_S

LENGTH = struct.Struct("!Q")
CHUNK_BYTES = 1 << 16


def write(file: int, value: Any, wait: Callable[[], None] | None = None) -> None:
    """Send a value.

    Args:
        file: descriptor of a socket or pipe.
        value: what pickle can take; tensors are copied.
        wait: called at each tick in which nothing could be sent; may raise. None: there is no time limit.

    Raises:
        OSError: when the other side has closed.
    """
    data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    rest = memoryview(LENGTH.pack(len(data)) + data)
    os.set_blocking(file, False)
    while rest:
        try:
            rest = rest[os.write(file, rest) :]
        except BlockingIOError:
            if not select.select([], [file], [], TICK_S)[1] and wait is not None:
                wait()


def read(file: int, wait: Callable[[], None] | None = None) -> Any:
    """Receive a value; None when the other side has closed. See `write`."""
    ready = select.poll()
    ready.register(file, select.POLLIN)
    data, length = bytearray(), LENGTH.size
    while len(data) < length:
        if not ready.poll(None if wait is None else 1000 * TICK_S):
            assert wait is not None
            wait()
        elif piece := os.read(file, max(length - len(data), CHUNK_BYTES)):
            data += piece
            if length == LENGTH.size <= len(data):
                length += LENGTH.unpack_from(data)[0]
        else:
            return None
    return pickle.loads(memoryview(data)[LENGTH.size :])
