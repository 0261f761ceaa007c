"""`python -m dqs_lightning.cli.export`."""

import sys

from dqs_lightning.cli.export.command import main

sys.exit(main())
