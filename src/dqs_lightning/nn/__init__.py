"""Network parts shared by diffusion models and agents: backbones, critics, observation normalisation, precision."""
