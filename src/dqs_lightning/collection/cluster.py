"""Connects this process to Ray: a cluster that runs, or one on this machine alone."""

import logging
import os
import re
import signal
import socket
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default is 15

STORE_BYTES = 100 * 2**20
"""Size of the object store on this machine: blocks of transitions and weights are sent through it."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def connect(address: str | None, cpus: int) -> Any:
    """Returns the module `ray`, connected; this process keeps its own handlers of signals.

    Args:
        address: of a cluster, host:port or "auto"; None: Ray is started on this machine, and ends with this process.
        cpus: that Ray on this machine is to have, whatever the number of cores.

    Raises:
        ConnectionError: when the cluster does not answer.
        ModuleNotFoundError: when Ray is not installed.
    """
    import ray

    settings: dict[str, Any] = {"address": address or "local", "logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        settings |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        if address and (found := re.fullmatch(r"([\w.-]+):(\d+)", address)):
            socket.create_connection((found[1], int(found[2])), timeout=10).close()  # Ray itself waits for minutes
        ray.init(**settings)
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        raise ConnectionError(f"{address or 'local'}: Ray does not start: {error}") from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return ray
