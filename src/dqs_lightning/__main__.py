"""`python -m dqs_lightning` is the command `dqs-fit`."""

import sys

from dqs_lightning.cli.fit import main

if __name__ == "__main__":
    sys.exit(main())
