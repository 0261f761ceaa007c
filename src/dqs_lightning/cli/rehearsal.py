"""Parses a command line as `dqs-fit` would, and starts nothing."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from dqs_lightning.cli.checks import check_seed
from dqs_lightning.cli.training import FitCLI
from dqs_lightning.cli.trust import restrict_imports, trust_option


class Rehearsal(FitCLI):
    """Parses a command line of `dqs-fit`: its files, keys, components and types.

    Values are not checked further: they may need devices or packages that only the machine of the run has.

    Args:
        arguments: of the command line, after the command's name.

    Raises:
        InputError: as `dqs-fit` would print it.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = list(arguments)
        restrict_imports(trust_option(self._arguments))
        super().__init__()

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(self._arguments)
        check_seed(self.config.seed_everything)

    def _set_seed(self) -> None:
        """This process keeps its own random state."""

    def before_instantiate_classes(self) -> None:
        """Nothing follows the parse."""

    def instantiate_classes(self) -> None:
        """Nothing follows the parse."""
