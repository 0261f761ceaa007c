"""Diffusion Q-Sampling on PyTorch Lightning and TorchRL.

The names below are imported on first use: `import dqs_lightning` alone imports neither torch nor Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dqs_lightning.agents import DQS, PPO, SAC, TD3, load_agent
    from dqs_lightning.collection.data import OnlineData
    from dqs_lightning.diffusion import BoltzmannSampler
    from dqs_lightning.envs import DMControl, Gym

__version__ = "0.1.0"
__all__ = ["DQS", "PPO", "SAC", "TD3", "BoltzmannSampler", "DMControl", "Gym", "OnlineData", "load_agent"]

_HOMES = {
    "agents": ("DQS", "PPO", "SAC", "TD3", "load_agent"),
    "collection.data": ("OnlineData",),
    "diffusion": ("BoltzmannSampler",),
    "envs": ("DMControl", "Gym"),
}
"""The module of this package that each public name is imported from."""


def __getattr__(name: str) -> Any:
    """Imports a public name on its first use (PEP 562)."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
