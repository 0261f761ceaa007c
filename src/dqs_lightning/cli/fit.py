"""`dqs-fit`: train an agent from a configuration."""

import logging
import os
import sys
import warnings

os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MUJOCO_GL", "disabled")

from dqs_lightning.cli.errors import reported


@reported("dqs-fit")
def main() -> int:
    """Console entry point."""
    from jsonargparse import set_parsing_settings

    from dqs_lightning.cli.training import FitCLI
    from dqs_lightning.cli.trust import trusted_packages

    warnings.filterwarnings("ignore", module=r"(torchrl|tensordict|lightning)\b.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=trusted_packages(sys.argv[1:]))
    return FitCLI().fit()


if __name__ == "__main__":
    sys.exit(main())
