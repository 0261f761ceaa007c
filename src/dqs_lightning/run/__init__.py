"""Saving and continuing a run."""
