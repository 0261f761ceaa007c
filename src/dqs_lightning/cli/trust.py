"""Limits the packages whose classes a configuration or a checkpoint may name."""

import importlib
from collections.abc import Sequence
from itertools import pairwise

from jsonargparse import set_parsing_settings

from dqs_lightning.checkpoint import restore
from dqs_lightning.cli.errors import InputError, refusing
from dqs_lightning.registry import load_entry_points

PARTS = ("accelerators", "callbacks", "loggers", "plugins", "profilers", "strategies")
TRUSTED = [
    "dqs_lightning",
    "dqs_callbacks",
    *(f"lightning.pytorch.{part}" for part in PARTS),
    "lightning.fabric.plugins",  # where Lightning defines most of its plugins
    "lightning.Callback",  # the base class, by the name under which the parser knows it
]
"""Always trusted; packages with an entry point and those that --trust names are added."""

REFUSED = ["*", "dqs_lightning.agents.loading", "dqs_lightning.cli", "lightning.pytorch.callbacks.lambda_function"]
"""Everything else; of what is trusted, functions and the callback that calls whatever function a file names."""


def trust_option(arguments: Sequence[str]) -> list[str]:
    """Returns the packages that a command line names by --trust; the key `trust` of a file has no effect."""
    return [a.partition("=")[2] or b for a, b in pairwise([*arguments, ""]) if a.partition("=")[0] == "--trust"]


def restrict_imports(given: Sequence[str]) -> None:
    """Lets files name only classes of trusted packages, from now on in this process, and imports the added packages.

    Added are the packages in `given`, those of --trust, and those with an entry point.
    """
    for name in given:
        if not all(part.isidentifier() for part in name.split(".")) or name.partition(".")[0] == "jsonargparse":
            raise InputError(f"--trust={name}: must be the import name of a package, such as my_package")
        with refusing(f"--trust={name}: cannot be imported: ", Exception):
            importlib.import_module(name)
    with refusing("a package that registers components cannot be imported: ", Exception):
        added = [*load_entry_points(), *given]
    set_parsing_settings(
        import_path_denylist=REFUSED,
        import_path_allowlist=[*TRUSTED, *added],
        instantiate_subclass_spec_in_any=False,  # an argument of type Any takes a class path as a plain value
    )
    restore.trust(added)
