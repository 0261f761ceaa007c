"""dqs-lightning: Diffusion Q-Sampling on PyTorch Lightning and TorchRL."""

__version__ = "0.1.0"
