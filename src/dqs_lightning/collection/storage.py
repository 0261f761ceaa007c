"""Storage of the replay buffer."""

import logging
from typing import Any

from torchrl import torchrl_logger
from torchrl.data import LazyTensorStorage


class Storage(LazyTensorStorage):  # type: ignore[misc]  # torchrl has no types
    """TorchRL's storage in memory, without the log line that it writes when the first transitions arrive."""

    def _init(self, data: Any) -> None:
        level = torchrl_logger.level
        torchrl_logger.setLevel(max(level, logging.WARNING))
        try:
            super()._init(data)
        finally:
            torchrl_logger.setLevel(level)
