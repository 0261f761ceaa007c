"""Where and with what a figure was measured, for scripts that run with `benchmarks/` on their path."""

from dqs_lightning.cli.provenance import about

__all__ = ["about"]
