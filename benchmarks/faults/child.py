"""Runs the training command with a study's hooks in a new process: `python -m faults.child ARGUMENTS`."""

import json
import os
import sys

from faults import hooks

VARIABLE = "FAULTS_HOOKS"


def main() -> int:
    """Apply the hooks in the environment variable, then run `dqs-fit`; returns its exit code."""
    hooks.apply(json.loads(os.environ.get(VARIABLE, "[]")))
    from dqs_lightning.cli import fit

    return fit.main()


if __name__ == "__main__":
    sys.exit(main())
