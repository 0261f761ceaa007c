"""Checks the commands of a sweep as dqs-fit does, before any of them is started."""

import logging
from pathlib import Path
from typing import Any

from dqs_lightning.cli.checks import check
from dqs_lightning.cli.errors import InputError, refusing
from dqs_lightning.cli.sweep_plan import Run, runs_of, search_of
from dqs_lightning.cli.sweep_space import overrides_of
from dqs_lightning.cli.training import Rehearsal
from dqs_lightning.cli.trust import restrict_imports


class Construction(Rehearsal):
    """Parses a command line of `dqs-fit`, and constructs every part of the run, with a Trainer on this CPU."""

    def before_instantiate_classes(self) -> None:
        config = self.config.clone()
        config.trainer.accelerator, config.trainer.devices, config.trainer.num_nodes = "cpu", 1, 1
        check(config)


def check_commands(file: Path, runs: list[Run]) -> None:
    """Parses the command line of each task and variant as dqs-fit does; an error names the task and the variant."""
    for family, run in {run.name.rpartition("/")[0]: run for run in runs}.items():
        with refusing(f"{file}: {family}: ", InputError):
            restrict_imports(())
            Rehearsal(run.command[1:])


def check_search(file: Path, content: dict[str, Any], out: Path) -> None:
    """Constructs the run of each end of a range and of each choice, the other parameters at their first value."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for parameters in search_of(content).attempts():
        runs = runs_of(file, content, {"search": overrides_of(parameters)}, out)
        for task, run in {run.name.partition("/")[0]: run for run in runs}.items():
            with refusing(f"{file}: {task}: ", InputError):
                restrict_imports(())
                Construction(run.command[1:])
