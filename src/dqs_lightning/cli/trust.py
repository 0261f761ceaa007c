"""The packages whose classes a configuration may name."""

from itertools import pairwise

from dqs_lightning.cli.errors import InputError
from dqs_lightning.registry import load_entry_points

TRUSTED = ["dqs_lightning", "dqs_callbacks", "lightning", "lightning_fabric", "pytorch_lightning", "torch", "torchrl"]
"""Always trusted; packages with an entry point and those that --trust names are added."""


def trusted_packages(arguments: list[str]) -> list[str]:
    """Packages that a command line trusts. The key `trust` of a configuration file has no effect.

    Raises:
        InputError: when --trust names no package.
    """
    given = [a.partition("=")[2] or b for a, b in pairwise([*arguments, ""]) if a.partition("=")[0] == "--trust"]
    for name in given:
        if not all(part.isidentifier() for part in name.split(".")):
            raise InputError(f"--trust={name}: must be the name of a package")
    return [*TRUSTED, *load_entry_points(), *given]
