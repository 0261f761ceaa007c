"""`dqs-fit`: train an agent from a configuration."""

import logging
import os
import sys
import warnings

os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MUJOCO_GL", "disabled")
os.environ.setdefault("MPLBACKEND", "agg")  # a matplotlibrc in the working directory could name any module

from dqs_lightning.cli.errors import BAD_INPUT, DIVERGED, InputError
from dqs_lightning.cli.escape import printable_lines


def main() -> int:
    """Console entry point."""
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from dqs_callbacks import NonFiniteError
    from dqs_lightning.checkpoint import CheckpointError
    from dqs_lightning.cli.training import FitCLI
    from dqs_lightning.cli.trust import restrict_imports, trust_option

    warnings.filterwarnings("ignore", module=r"(torchrl|tensordict|lightning)\b.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    try:
        restrict_imports(trust_option(sys.argv[1:]))
        return FitCLI().fit()
    except (InputError, CheckpointError, MisconfigurationException) as error:
        print(printable_lines(f"dqs-fit: {error}"), file=sys.stderr)
        return BAD_INPUT
    except NonFiniteError as error:
        print(f"dqs-fit: diverged: {error}", file=sys.stderr)
        return DIVERGED


if __name__ == "__main__":
    sys.exit(main())
