"""`python -m dqs_lightning.cli.report`."""

import sys

from dqs_lightning.cli.report.command import main

sys.exit(main())
