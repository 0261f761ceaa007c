"""`dqs-report`: curves, tables and a comparison of runs, on one page. `command` is where it starts."""

from dqs_lightning.cli.report.command import main

__all__ = ["main"]
