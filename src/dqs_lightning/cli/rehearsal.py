"""Parses a command line as `dqs-fit` would, and starts nothing."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from dqs_lightning.cli.checks import check_seed
from dqs_lightning.cli.training import FitCLI
from dqs_lightning.cli.trust import restrict_imports, trust_option


class Rehearsal(FitCLI):
    """Parses a command line of `dqs-fit`, after the command's name: its files, keys, components and types.

    Values are not checked further: they may require devices or packages that only the machine of the run has.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = list(arguments)
        restrict_imports(trust_option(self._arguments))
        super().__init__()

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(self._arguments)
        check_seed(self.config.seed_everything)

    def _set_seed(self) -> None:
        """Keeps the random state of this process."""

    def before_instantiate_classes(self) -> None:
        """Does nothing: only the parse is needed."""

    instantiate_classes = before_instantiate_classes
