"""Every test starts from the same seed, on one thread, without a renderer."""

import os

os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MUJOCO_GL", "disabled")

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Names an object by its class where its representation has an address, which differs between processes."""
    return type(val).__name__ if " at 0x" in repr(val) else None
