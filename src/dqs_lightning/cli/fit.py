"""`dqs-fit`: train an agent from a configuration."""

import logging
import sys
import warnings

from dqs_lightning.cli.errors import DONE, STOPPED, reported
from dqs_lightning.cli.machine import keep_freed_memory, show_log
from dqs_lightning.stop_signal import STOP, Phase, started_by_another_rank


@reported("dqs-fit")
def command() -> int:
    """Run the command; expected errors become messages and exit codes."""
    installed = STOP.install(Phase.START)
    try:
        return train()
    finally:
        if installed:
            STOP.uninstall()


def main() -> int:
    """Console entry point. Stop signals are handled before the long imports begin."""
    keep_freed_memory()
    code = command()
    # All ranks end alike. One that Lightning started ends with 0: at any other code Lightning kills the first rank.
    return DONE if started_by_another_rank() else code


def train() -> int:
    """Run the command; returns its exit code."""
    from dqs_lightning.cli.training import FitCLI
    from dqs_lightning.cli.trust import restrict_imports, trust_option

    STOP.phase = Phase.BUILD
    show_log()
    warnings.filterwarnings("ignore", module=r"(torchrl|tensordict|lightning)\b.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    # The one line with which Lightning says why it kills the first rank.
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    try:
        restrict_imports(trust_option(sys.argv[1:]))
        return FitCLI().fit()
    except SystemExit as stop:  # also that of --help
        if stop.code != STOPPED:
            raise
        print("dqs-fit: stopped before training began", file=sys.stderr)
        return STOPPED


if __name__ == "__main__":
    sys.exit(main())
