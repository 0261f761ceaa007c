"""Batches for training: the data module, its loader, replay and rollouts."""
