"""Trained agents for others: metadata, model cards, and the Hugging Face Hub."""
