"""Batches for training: the data module, its clock, collectors, replay and rollouts."""
