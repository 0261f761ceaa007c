"""`dqs-export`: a trained policy as one graph, with its metadata and a model card. `command` is where it starts."""

from dqs_lightning.cli.export.command import main

__all__ = ["main"]
